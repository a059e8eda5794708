"""What should the network say, and how do steps weigh?

Ho et al., 2020, §3.4 and Table 2: the noise (eps) with L_simple gives the best images, better than with the bound's
weights (vlb) and than the image itself (x0). Salimans & Ho, 2022: v = α ε − σ x0. Hang et al., 2023: the signal to
noise ratio, cut at 5 (min_snr), learns faster.

  python -m vlx.ablate --experiment=experiments/ldm_objective.py --workdir=runs/ablations
"""

from vlx.ablate.experiment import Experiment

EXPERIMENT = Experiment(
  claim="In few steps v with weights by min-SNR gives better images than eps with L_simple, and the bound's weights the worst.",
  config="configs/latent_diffusion.py:ablation",
  arms={
    f"{prediction}, {weighting}": {
      "model.process.prediction": prediction,
      "model.weighting": weighting,
    }
    for prediction, weighting in (
      ("eps", "simple"),
      ("x0", "simple"),
      ("v", "simple"),
      ("eps", "min_snr"),
      ("v", "min_snr"),
      ("eps", "vlb"),
    )
  },
  measures=(
    *(f"fidelity/combo/samples/{m}" for m in ("fid", "precision", "recall")),
    *(f"generation/combo/samples/{m}" for m in ("clip_cosine", "tones_accuracy", "border")),
  ),
)
