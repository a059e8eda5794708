"""The discrete VAE of DALL-E.

  python -m vlx.train --config=configs/dvae.py:VARIANT --workdir=runs/dvae

`ablation` is what experiments/dvae_kl_weight.py varies.

`emoji` takes 19 minutes on one CPU core: docs/results/tokenizers.md.
"""

import ml_collections

from vlx.core.config import finalize, select_variant
from vlx.models.generation import dvae
from vlx.train import defaults


def get_config(variant: str = "emoji") -> ml_collections.ConfigDict:
  return finalize(select_variant(VARIANTS, variant)())


def _emoji(size: int) -> ml_collections.ConfigDict:
  config = defaults.get_config()
  config.system = "vlx.models.generation.dvae.DVAE"
  config.data.source = "tfds:emoji"
  config.data.image_transform = f"decode|resize({size})|normalize"
  config.data.preprocess = f'decode|resize({size})|cache|flip_lr|normalize|keep("image")'
  config.data.batch_size = 32
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
    image_size=16,
    width=8,
    num_codes=16,
    code_dim=8,
    num_groups=3,
    blocks_per_group=1,
    beta_steps=4,
    temperature_steps=4,
  )
  config.steps = 4
  config.log_every = 1
  config.optim.lr = 1e-3
  config.evaluators.reconstruction.splits = ("combo",)
  return config


def emoji() -> ml_collections.ConfigDict:
  """64x64 images as 8x8 codes out of 512; β rises at once: in the paper within 5,000 of 3,000,000.

  The least b is about three of a pixel's 256 levels, where it is white.
  """
  config = _emoji(size=64)
  config.model = dict(
    image_size=64,
    width=16,
    num_codes=512,
    code_dim=64,
    blocks_per_group=1,
    beta_steps=20,
    temperature_steps=1000,
    min_scale=0.1,
  )
  config.steps = 2000
  config.optim.update(dict(lr=3e-3, warmup_steps=50, final_lr_ratio=0.05, ema_decay=0.995))
  return config


def ablation() -> ml_collections.ConfigDict:
  """32x32 images as 8x8 codes out of 256: a minute on one core."""
  config = _emoji(size=32)
  config.model = dict(
    image_size=32,
    width=16,
    num_codes=256,
    code_dim=32,
    num_groups=3,
    blocks_per_group=1,
    beta=1.0,
    beta_steps=150,
    temperature_steps=400,
  )
  config.steps = 500
  config.optim.update(dict(lr=2e-3, warmup_steps=50, final_lr_ratio=0.05, ema_decay=0.98))
  return config


def paper() -> ml_collections.ConfigDict:
  """Appendix A.2: 256x256 as 32x32 codes out of 8,192, batch 512, 3,000,000 updates.

  Name a source of your own. The step size falls from 1e-4 to 1.25e-6 over the first 1,200,000
  updates and stays; here it falls over all. Listing 1's crops are taken as a square and a part of it.
  """
  config = defaults.get_config()
  config.system = "vlx.models.generation.dvae.DVAE"
  config.model = dict(dvae.published_size(), dtype="bfloat16")
  config.data.source = "folder:."
  config.data.batch_size = 512
  config.data.preprocess = (
    'decode|square_crop|random_resized_crop(256, 0.5, 1.0)|flip_lr|normalize|keep("image")'
  )
  config.data.image_transform = "decode|resize_small(256)|central_crop(256)|normalize"
  config.data.update(threads=32, prefetch=8)
  config.steps = 3_000_000
  config.optim.update(
    dict(
      lr=1e-4,
      final_lr_ratio=1.25e-2,
      b1=0.9,
      b2=0.999,
      eps=1e-8,
      weight_decay=1e-4,
      clip_norm=0.0,
      ema_decay=0.999,
      rules=(),
    )
  )
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
