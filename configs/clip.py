"""CLIP.

  python -m vlx.train --config=configs/clip.py:VARIANT --workdir=runs/clip

Variants: smoke, demo, emoji, folder, and the published b32, b16, l14, l14_336 (paper = l14_336).
"""

import ml_collections

from vlx.config import choose
from vlx.models.contrastive import clip
from vlx.train import defaults

PROMPTS = ("{}", "a picture of {}", "an emoji of {}", "a drawing of {}")
EVAL = 'decode|resize({size})|normalize|keep("image", "caption")'
# Colour and HOG features, kernel ridge regression to TF-IDF of the captions.
BASELINES = {"combo": (21.0, 71.2), "concept": (3.3, 17.3), "style": (6.9, 11.8)}


def get_config(variant: str = "emoji") -> ml_collections.ConfigDict:
  variants = dict(smoke=smoke, demo=demo, emoji=emoji)
  return choose(variants, variant)().lock()


def _emoji(size: int, text_length: int, vocab_size: int) -> ml_collections.ConfigDict:
  config = defaults.get_config()
  config.system = "vlx.models.contrastive.clip.CLIP"
  config.data.source = "tfds:emoji"
  config.data.preprocess = (
      f'decode("RGBA")|cache|background|random_resized_crop({size}, 0.6)|normalize|'
      f'template{PROMPTS}|tokenize("caption", {text_length})|keep("image", "text", "text_mask")'
  )
  config.tokenizer = dict(vocabulary="", vocab_size=vocab_size, fields=("caption", "keywords"))
  splits = tuple(BASELINES)
  config.evaluators = dict(
      retrieval=dict(
          type="vlx.evaluate.retrieval.Retrieval", splits=splits,
          gallery=("train", "combo", "concept"), preprocess=EVAL.format(size=size),
          text_length=text_length,
      ),
      attention=dict(
          type="vlx.evaluate.attention.Attention", splits=("combo",),
          preprocess=EVAL.format(size=size),
      ),
  )
  for split, (r1, r5) in BASELINES.items():
    config.baselines[f"retrieval/{split}/image_to_text_r1"] = r1
    config.baselines[f"retrieval/{split}/image_to_text_r5"] = r5
  return config


def smoke() -> ml_collections.ConfigDict:
  """Seconds; the tests use it."""
  config = _emoji(size=32, text_length=16, vocab_size=1000)
  tower = dict(width=32, depth=2, num_heads=2, mlp_dim=64)
  config.model = dict(
      image=dict(image_size=32, patch_size=8, **tower),
      text=dict(vocab_size=1000, context_length=16, **tower),
      embed_dim=32,
  )
  config.steps = 8
  config.data.batch_size = 32
  config.log_every = 1
  config.optim.lr = 1e-3
  return config


def demo() -> ml_collections.ConfigDict:
  config = _emoji(size=64, text_length=24, vocab_size=1500)
  tower = dict(width=128, depth=4, num_heads=4, mlp_dim=512)
  config.model = dict(
      image=dict(image_size=64, patch_size=16, pool="mean", **tower),
      text=dict(vocab_size=1500, context_length=24, **tower),
      embed_dim=128,
  )
  config.steps = 900
  config.optim.lr = 1e-3
  config.optim.warmup_steps = 50
  config.optim.weight_decay = 0.1
  return config


def emoji() -> ml_collections.ConfigDict:
  return demo()
