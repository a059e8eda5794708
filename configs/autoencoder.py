"""The autoencoders of latent diffusion.

  python -m vlx.train --config=configs/autoencoder.py:VARIANT --workdir=runs/autoencoder

`emoji` has a run of configs/vit.py:groups in runs/groups as its perceptual network.
"""

import ml_collections

from vlx.core.config import finalize, select_variant
from vlx.train import defaults

KL = "vlx.models.generation.autoencoder.KLAutoencoder"
VQ = "vlx.models.generation.autoencoder.VQAutoencoder"


def get_config(variant: str = "emoji") -> ml_collections.ConfigDict:
  return finalize(select_variant(VARIANTS, variant)())


def _emoji(size: int) -> ml_collections.ConfigDict:
  config = defaults.get_config()
  config.system = KL
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
    image_size=16, latent_channels=2, width=8, multipliers=(1, 2), num_blocks=1, groups=4
  )
  config.steps = 4
  config.log_every = 1
  config.optim.lr = 1e-3
  config.evaluators.reconstruction.splits = ("combo",)
  return config


def emoji() -> ml_collections.ConfigDict:
  """64x64 images as 16x16 latents of 4 channels."""
  config = _emoji(size=64)
  config.model = dict(
    image_size=64,
    latent_channels=4,
    width=32,
    multipliers=(1, 2, 2),
    num_blocks=1,
    groups=8,
  )
  config.steps = 1000
  config.optim.update(dict(lr=1e-3, warmup_steps=50, final_lr_ratio=0.05, b2=0.99, ema_decay=0.99))
  return config


VARIANTS = dict(smoke=smoke, emoji=emoji)
