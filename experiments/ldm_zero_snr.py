"""Is white background white?

Lin et al., 2024 ("Common Diffusion Noise Schedules and Sample Steps are Flawed"): a schedule whose last step still tells something
of the image makes samples of medium brightness, for sampling starts from what tells nothing; nothing left (zero terminal SNR), v,
and guidance that is rescaled mend it. Emoji stand on white; Stable Diffusion's schedule.

  python -m vlx.ablate --experiment=experiments/ldm_zero_snr.py --workdir=runs/ablations
"""

from vlx.ablate.experiment import Experiment

EXPERIMENT = Experiment(
  claim="With zero terminal SNR the borders of samples are as white as real ones, without it grayer.",
  config="configs/latent_diffusion.py:ablation",
  common={
    "model.process.schedule": "scaled_linear",
    "model.process.beta_start": 0.00085,
    "model.process.beta_end": 0.012,
    "model.weighting": "simple",
  },
  arms={"as published": {}, "zero terminal SNR": {"model.process.zero_terminal_snr": True}},
  measures=(
    *(f"fidelity/combo/samples/{m}" for m in ("fid", "precision", "recall")),
    *(f"generation/combo/samples/{m}" for m in ("clip_cosine", "tones_accuracy", "border")),
  ),
)
