"""A text encoder that rests, or one that learns along?

Rombach et al., 2022, trained the text model along; Stable Diffusion took CLIP's, which rests. Here the CLIP is that of
configs/clip.py:demo, which has seen the same images.

  python -m vlx.train --config=configs/clip.py:demo --workdir=runs/clip
  python -m vlx.ablate --experiment=experiments/ldm_text.py --workdir=runs/ablations
"""

from vlx.ablate.experiment import Experiment
from vlx.core import config as configs

_clip = configs.load_config("configs/clip.py:demo")
_ldm = configs.load_config("configs/latent_diffusion.py:ablation")
# The same words have the same ids in both, for the vocabulary is learned of the same texts.
WORDS = {
  "tokenizer": _clip.tokenizer.to_dict(),
  "model.text_encoder.text": _clip.model.text.to_dict(),
}

EXPERIMENT = Experiment(
  claim="The text encoder of a CLIP that has seen the same images, at rest, gives images that fit their text better.",
  config="configs/latent_diffusion.py:ablation",
  arms={
    "two layers, learn along": {},
    "bag of words, learns along": WORDS,
    "bag of words, CLIP's, at rest": {
      **WORDS,
      "init": (dict(source="runs/clip", take="text", put="text_encoder/text"),),
      "optim.rules": _ldm.optim.rules[:-1],
    },
  },
  measures=(
    *(f"fidelity/combo/samples/{m}" for m in ("fid", "precision", "recall")),
    *(f"generation/combo/samples/{m}" for m in ("clip_cosine", "tones_accuracy", "border")),
  ),
)
