"""The autoencoders of latent diffusion.

  python -m vlx.train --config=configs/autoencoder.py:VARIANT --workdir=runs/autoencoder

The paper's are `kl_f4`, `kl_f8` (Stable Diffusion's: `paper`), `kl_f16`, `vq_f4`, `vq_f8`, `vq_f16`.
"""

import functools

import ml_collections

from vlx.core.config import finalize, select_variant
from vlx.train import defaults

KL = "vlx.models.generation.autoencoder.KLAutoencoder"
VQ = "vlx.models.generation.autoencoder.VQAutoencoder"

# Multipliers, channels of the latents, factors of size with attention, codes (the paper's table 8; 0: KL).
PUBLISHED = dict(
  kl_f4=((1, 2, 4), 3, (), 0),
  kl_f8=((1, 2, 4, 4), 4, (), 0),
  kl_f16=((1, 1, 2, 2, 4), 16, (16,), 0),
  vq_f4=((1, 2, 4), 3, (), 8192),
  vq_f8=((1, 2, 2, 4), 4, (8,), 16384),
  vq_f16=((1, 1, 2, 2, 4), 8, (16,), 16384),
)


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
  """64x64 images as 16x16 latents of 4 channels, by their colors alone."""
  config = _emoji(size=64)
  config.model = dict(
    image_size=64,
    latent_channels=4,
    width=16,
    multipliers=(1, 2, 4),
    num_blocks=1,
    groups=4,
    learned_scale=True,
  )
  config.steps = 700
  config.optim.update(dict(lr=1e-3, warmup_steps=50, final_lr_ratio=0.05, b2=0.99, ema_decay=0.99))
  return config


def ablation(factor: int = 4, codes: int = 0) -> ml_collections.ConfigDict:
  """32x32 images, for experiments/ldm_*.py: two minutes on one core."""
  config = _emoji(size=32)
  config.system = VQ if codes else KL
  config.model = dict(
    image_size=32,
    latent_channels=factor,
    width=16,
    multipliers=(1, 2, 4, 4)[: factor.bit_length()],
    num_blocks=1,
    groups=4,
    **(dict(num_codes=codes) if codes else dict(learned_scale=True)),
  )
  config.steps = 400
  config.optim.update(dict(lr=2e-3, warmup_steps=30, final_lr_ratio=0.05, b2=0.99, ema_decay=0.98))
  return config


def paper(name: str = "kl_f8") -> ml_collections.ConfigDict:
  """Appendix G: 256x256 crops; a discriminator from step 50,001. Name a source of your own, and for `perceptual` VGG-16
  with LPIPS's layers.

  The base rate of 4.5e-6 is multiplied by the batch, 96 here; how many steps there are is not said.
  """
  multipliers, channels, attention_at, codes = PUBLISHED[name]
  config = defaults.get_config()
  config.system = VQ if codes else KL
  config.model = dict(
    image_size=256,
    latent_channels=channels,
    multipliers=multipliers,
    attention_at=attention_at,
    adversarial_weight=(0.6 if name == "vq_f8" else 0.75) if codes else 0.5,
    dtype="bfloat16",
  )
  if codes:
    config.model.update(num_codes=codes)
  config.data.source = "folder:."
  config.data.batch_size = 96
  config.data.preprocess = (
    'decode|resize_small(256)|random_crop(256)|flip_lr|normalize|keep("image")'
  )
  config.data.image_transform = "decode|resize_small(256)|central_crop(256)|normalize"
  config.data.update(threads=32, prefetch=8)
  config.steps = 400_000
  config.optim.update(
    dict(lr=96 * 4.5e-6, schedule="constant", b1=0.5, b2=0.9, clip_norm=0.0, rules=())
  )
  config.evaluators = dict(
    reconstruction=dict(type="vlx.evaluate.tasks.reconstruction.Reconstruction", splits=("val",))
  )
  return config


def folder() -> ml_collections.ConfigDict:
  """Your own images: --config.data.source=folder:PATH, or another of vlx.data.sources; 64x64
  pixels as 16x16 latents.
  """
  config = emoji()
  config.data.source = "folder:."
  config.data.image_transform = "decode|resize_small(64)|central_crop(64)|normalize"
  config.data.preprocess = 'decode|random_resized_crop(64, 0.5)|flip_lr|normalize|keep("image")'
  config.evaluators.reconstruction.splits = ("val",)
  return config


VARIANTS = dict(
  smoke=smoke,
  emoji=emoji,
  folder=folder,
  ablation=ablation,
  ablation_f2=functools.partial(ablation, 2),
  ablation_f8=functools.partial(ablation, 8),
  ablation_vq=functools.partial(ablation, 4, 512),
  paper=paper,
  **{name: functools.partial(paper, name) for name in PUBLISHED if name != "kl_f8"},
)
