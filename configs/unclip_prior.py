"""unCLIP's prior: the CLIP embedding of an image for a text.

  python -m vlx.train --config=configs/unclip_prior.py:VARIANT --workdir=runs/unclip_prior

`diffusion` and `ar` stand above a run of configs/clip.py:demo in runs/clip.
"""

import ml_collections

from configs.common import unclip
from vlx.core.config import finalize, part_from, select_variant


def get_config(variant: str = "diffusion") -> ml_collections.ConfigDict:
  return finalize(select_variant(VARIANTS, variant)())


def smoke() -> ml_collections.ConfigDict:
  """Seconds; the tests use it. Its CLIP is not trained."""
  config = unclip.emoji(32, "configs/clip.py:smoke")
  config.system = "vlx.models.generation.unclip_prior.DiffusionPrior"
  config.model = dict(
    clip=part_from("configs/clip.py:smoke"),
    network=dict(dim=32, text_length=16, width=32, depth=1, num_heads=2, mlp_dim=64),
    image_size=32,
  )
  config.init = (dict(source="random", put="clip"),)
  config.steps = 4
  config.log_every = 1
  config.optim.lr = 1e-3
  config.evaluators.loss.splits = ("combo",)
  return config


def diffusion() -> ml_collections.ConfigDict:
  """Of emoji."""
  config = unclip.emoji(32, "configs/clip.py:demo")
  config.system = "vlx.models.generation.unclip_prior.DiffusionPrior"
  config.model = dict(
    clip=dict(source="runs/clip"),
    network=dict(dim=128, text_length=24, width=192, depth=4, num_heads=6, mlp_dim=768, unroll=4),
    image_size=32,
  )
  config.steps = 2000
  config.data.batch_size = 64
  config.optim.update(
    dict(
      lr=1e-3, warmup_steps=100, final_lr_ratio=0.05, b2=0.96, weight_decay=0.06, ema_decay=0.995
    )
  )
  return config


def ar_smoke() -> ml_collections.ConfigDict:
  """Seconds; the tests use it. Its CLIP is not trained."""
  config = smoke()
  config.system = "vlx.models.generation.unclip_ar_prior.AutoregressivePrior"
  config.model = dict(
    clip=config.model.clip,
    network=dict(
      numbers=8, buckets=32, products=8, text_length=16, width=32, depth=1, num_heads=2, mlp_dim=64
    ),
    image_size=32,
    measured_by=2,
  )
  return config


def ar() -> ml_collections.ConfigDict:
  """Of emoji, number by number."""
  config = diffusion()
  config.system = "vlx.models.generation.unclip_ar_prior.AutoregressivePrior"
  config.model = dict(
    clip=dict(source="runs/clip"),
    network=dict(
      numbers=80,
      buckets=256,
      products=32,
      text_length=24,
      width=192,
      depth=4,
      num_heads=6,
      mlp_dim=768,
      unroll=4,
    ),
    image_size=32,
  )
  config.optim.update(dict(b2=0.91, weight_decay=0.04))
  return config


def folder() -> ml_collections.ConfigDict:
  """Your own images and captions: --config.data.source=folder:PATH, above a run of configs/clip.py:folder in
  runs/clip_folder.
  """
  config = unclip.of_folder(diffusion())
  config.model.clip = dict(source="runs/clip_folder")
  config.model.image_size = 64
  return config


VARIANTS = dict(smoke=smoke, folder=folder, diffusion=diffusion, ar_smoke=ar_smoke, ar=ar)
