"""unCLIP's upsamplers.

  python -m vlx.train --config=configs/unclip_upsampler.py:VARIANT --workdir=runs/unclip_upsampler

`emoji_first` makes images of 16x16 pixels 32x32, `emoji_second` those 64x64.
"""

import functools

import ml_collections

from vlx.core.config import finalize, select_variant
from vlx.train import defaults


def get_config(variant: str = "emoji_first") -> ml_collections.ConfigDict:
  return finalize(select_variant(VARIANTS, variant)())


def _emoji(size: int) -> ml_collections.ConfigDict:
  config = defaults.get_config()
  config.system = "vlx.models.generation.unclip_upsampler.UnCLIPUpsampler"
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
    low_size=8,
    unet=dict(
      channels=3, width=8, multipliers=(1, 2), num_blocks=1, groups=4, middle_attention=False
    ),
  )
  config.steps = 4
  config.log_every = 1
  config.optim.lr = 1e-3
  config.evaluators.reconstruction.splits = ("combo",)
  return config


def emoji(size: int, degradation: str, width: int) -> ml_collections.ConfigDict:
  """Twice the size of what it is given; learned of quarters of images."""
  config = _emoji(size)
  config.model = dict(
    image_size=size,
    low_size=size // 2,
    crop_size=size // 2,
    degradation=degradation,
    unet=dict(
      channels=3,
      width=width,
      multipliers=(1, 2, 2),
      num_blocks=1,
      scale_shift=True,
      residual_resampling=True,
      middle_attention=False,
      groups=8,
    ),
    process=dict(schedule="cosine", prediction="v"),
    weighting="min_snr",
  )
  config.data.batch_size = 64
  config.steps = 700
  config.optim.update(dict(lr=1e-3, warmup_steps=50, final_lr_ratio=0.05, b2=0.99, ema_decay=0.995))
  return config


def folder(size: int = 64, degradation: str = "bsr", width: int = 24) -> ml_collections.ConfigDict:
  """Your own images: --config.data.source=folder:PATH; twice the size, to 64x64, by `folder_first` to 32x32."""
  config = emoji(size, degradation, width)
  config.data.source = "folder:."
  config.data.image_transform = f"decode|resize_small({size})|central_crop({size})|normalize"
  config.data.preprocess = (
    f'decode|resize_small({size})|central_crop({size})|flip_lr|normalize|keep("image")'
  )
  config.evaluators.reconstruction.splits = ("val",)
  return config


VARIANTS = dict(
  smoke=smoke,
  folder=folder,
  folder_first=functools.partial(folder, 32, "blur", 32),
  emoji_first=functools.partial(emoji, 32, "blur", 32),
  emoji_second=functools.partial(emoji, 64, "bsr", 24),
)
