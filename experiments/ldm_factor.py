"""By how much should the autoencoder shrink an image, where all cost the same?

Rombach et al., 2022, §4.1, Figure 6: after equal compute LDM-4 and LDM-8 are ahead of pixels (LDM-1) and of LDM-32. Here on emoji of 32
pixels; the steps of each arm are as many as take equally long.

  python -m vlx.train --config=configs/autoencoder.py:ablation_f2 --workdir=runs/autoencoder_ablation_f2
  python -m vlx.train --config=configs/autoencoder.py:ablation --workdir=runs/autoencoder_ablation
  python -m vlx.train --config=configs/autoencoder.py:ablation_f8 --workdir=runs/autoencoder_ablation_f8
  python -m vlx.ablate --experiment=experiments/ldm_factor.py --workdir=runs/ablations
"""

from vlx.ablate.experiment import Experiment
from vlx.core import config as configs

_latent = configs.load_config("configs/latent_diffusion.py:ablation").model.to_dict()
PIXELS = {k: v for k, v in _latent.items() if k != "autoencoder"}

EXPERIMENT = Experiment(
  claim="At equal cost a factor of 4 gives better images than 2 and 8.",
  config="configs/latent_diffusion.py:ablation",
  arms={
    "pixels": {
      "system": "vlx.models.generation.ddpm.DDPM",
      "model": {**PIXELS, "unet": {**_latent["unet"], "channels": 3}},
      "steps": 30,
    },
    "f = 2": {
      "model.autoencoder.source": "runs/autoencoder_ablation_f2",
      "model.unet.channels": 2,
      "steps": 120,
    },
    "f = 4": {},
    "f = 8": {
      "model.autoencoder.source": "runs/autoencoder_ablation_f8",
      "model.unet.channels": 8,
      "steps": 700,
    },
  },
  measures=(
    *(f"fidelity/combo/samples/{m}" for m in ("fid", "precision", "recall")),
    *(f"generation/combo/samples/{m}" for m in ("clip_cosine", "tones_accuracy", "border")),
  ),
)
