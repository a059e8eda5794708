"""VQ-VAE.

  python -m vlx.train --config=configs/vqvae.py:VARIANT --workdir=runs/vqvae

`ablation` is what experiments/vqvae_codebook.py varies.

`emoji` takes 23 minutes on one CPU core: docs/results/tokenizers.md.
"""

import ml_collections

from vlx.core.config import finalize, select_variant
from vlx.train import defaults


def get_config(variant: str = "emoji") -> ml_collections.ConfigDict:
  return finalize(select_variant(VARIANTS, variant)())


def _emoji(size: int) -> ml_collections.ConfigDict:
  config = defaults.get_config()
  config.system = "vlx.models.generation.vqvae.VQVAE"
  config.data.source = "tfds:emoji"
  config.data.image_transform = f"decode|resize({size})|normalize"
  config.data.preprocess = f'decode|resize({size})|cache|flip_lr|normalize|keep("image")'
  config.evaluators = dict(
    reconstruction=dict(
      type="vlx.evaluate.tasks.reconstruction.Reconstruction", splits=("combo", "concept")
    )
  )
  return config


def smoke() -> ml_collections.ConfigDict:
  """Seconds; the tests use it."""
  config = _emoji(size=16)
  config.model = dict(
    image_size=16, widths=(8, 8), num_blocks=1, residual_width=8, num_codes=32, code_dim=4
  )
  config.steps = 4
  config.log_every = 1
  config.data.batch_size = 32
  config.optim.lr = 1e-3
  config.evaluators.reconstruction.splits = ("combo",)
  return config


def emoji() -> ml_collections.ConfigDict:
  """64x64 images as 8x8 codes out of 1,024."""
  config = _emoji(size=64)
  config.model = dict(
    image_size=64,
    widths=(32, 64, 128),
    num_blocks=2,
    residual_width=64,
    num_codes=1024,
    code_dim=32,
    restart_below=0.2,
    data_variance=0.4,
  )
  config.steps = 1800
  config.data.batch_size = 32
  config.optim.update(dict(lr=1e-3, warmup_steps=50, final_lr_ratio=0.05))
  return config


def ablation() -> ml_collections.ConfigDict:
  """32x32 images as 8x8 codes out of 512: a minute on one core; also the tokenizer of
  configs/dalle.py:ablation.
  """
  config = _emoji(size=32)
  config.model = dict(
    image_size=32,
    widths=(32, 64),
    num_blocks=2,
    residual_width=32,
    num_codes=512,
    code_dim=32,
    codebook="ema",
    restart_below=0.2,
    data_variance=0.4,
  )
  config.steps = 250
  config.data.batch_size = 32
  config.optim.update(dict(lr=1e-3, warmup_steps=50, final_lr_ratio=0.05))
  return config


def paper() -> ml_collections.ConfigDict:
  """§4.1: ImageNet at 128x128 as 32x32 codes out of 512; Adam at 2e-4, batch 128, 250,000 steps.

  The paper's experiments moved the codebook by its loss. Name a source of your own.
  """
  config = defaults.get_config()
  config.system = "vlx.models.generation.vqvae.VQVAE"
  config.model = dict(
    image_size=128,
    widths=(256, 256),
    num_blocks=2,
    residual_width=256,
    data_variance=0.3,  # (2 · 0.276)²: the deviation of Tiny ImageNet's pixels, of 0 to 1
    num_codes=512,
    code_dim=256,
    codebook="loss",
  )
  config.data.source = "folder:."
  config.data.batch_size = 128
  config.data.preprocess = (
    'decode|resize_small(128)|random_crop(128)|flip_lr|normalize|keep("image")'
  )
  config.data.image_transform = "decode|resize_small(128)|central_crop(128)|normalize"
  config.data.update(threads=16)
  config.steps = 250_000
  config.optim.update(dict(lr=2e-4, schedule="constant", clip_norm=0.0, rules=()))
  config.evaluators = dict(
    reconstruction=dict(type="vlx.evaluate.tasks.reconstruction.Reconstruction", splits=("val",))
  )
  return config


def folder() -> ml_collections.ConfigDict:
  """Your own images: --config.data.source=folder:PATH, or another of vlx.data.sources; 64x64
  pixels as 8x8 codes.
  """
  config = emoji()
  config.data.source = "folder:."
  config.data.image_transform = "decode|resize_small(64)|central_crop(64)|normalize"
  config.data.preprocess = 'decode|random_resized_crop(64, 0.5)|flip_lr|normalize|keep("image")'
  config.evaluators.reconstruction.splits = ("val",)
  return config


VARIANTS = dict(smoke=smoke, emoji=emoji, folder=folder, ablation=ablation, paper=paper)
