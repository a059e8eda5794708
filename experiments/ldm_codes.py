"""Gaussian latents or codes?

Rombach et al., 2022, §4.1 and Table 8: both kinds of autoencoder serve; diffusion above VQ ones gave the better images in some
settings though they reconstruct a little worse.

  python -m vlx.train --config=configs/autoencoder.py:ablation --workdir=runs/autoencoder_ablation
  python -m vlx.train --config=configs/autoencoder.py:ablation_vq --workdir=runs/autoencoder_ablation_vq
  python -m vlx.ablate --experiment=experiments/ldm_codes.py --workdir=runs/ablations
"""

from vlx.ablate.experiment import Experiment

EXPERIMENT = Experiment(
  claim="Diffusion above VQ latents gives as good images as above KL latents.",
  config="configs/latent_diffusion.py:ablation",
  arms={"kl": {}, "vq": {"model.autoencoder.source": "runs/autoencoder_ablation_vq"}},
  measures=(
    *(f"fidelity/combo/samples/{m}" for m in ("fid", "precision", "recall")),
    *(f"generation/combo/samples/{m}" for m in ("clip_cosine", "tones_accuracy", "border")),
  ),
)
