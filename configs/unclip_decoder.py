"""unCLIP's decoder: an image for a CLIP embedding and a text.

  python -m vlx.train --config=configs/unclip_decoder.py:VARIANT --workdir=runs/unclip_decoder

`emoji` stands above a run of configs/clip.py:demo in runs/clip, and gives images of 16x16.
"""

import ml_collections

from configs.common import unclip
from vlx.core.config import finalize, part_from, select_variant


def get_config(variant: str = "emoji") -> ml_collections.ConfigDict:
  return finalize(select_variant(VARIANTS, variant)())


def smoke() -> ml_collections.ConfigDict:
  """Seconds; the tests use it. Its CLIP is not trained."""
  config = unclip.emoji(32, "configs/clip.py:smoke")
  config.system = "vlx.models.generation.unclip_decoder.UnCLIPDecoder"
  config.model = dict(
    clip=part_from("configs/clip.py:smoke"),
    clip_size=32,
    unet=dict(
      channels=3,
      width=8,
      multipliers=(1, 2),
      num_blocks=1,
      attention_at=(2,),
      head_dim=4,
      joint_attention=True,
      scale_shift=True,
      groups=4,
    ),
    image_size=8,
    text_length=16,
    context_width=16,
  )
  config.init = (dict(source="random", put="clip"),)
  config.steps = 4
  config.log_every = 1
  config.optim.lr = 1e-3
  config.evaluators.loss.splits = ("combo",)
  return config


def emoji() -> ml_collections.ConfigDict:
  """16x16 images of emoji, which two upsamplers make 64x64."""
  config = unclip.emoji(32, "configs/clip.py:demo")
  config.system = "vlx.models.generation.unclip_decoder.UnCLIPDecoder"
  config.model = dict(
    clip=dict(source="runs/clip"),
    clip_size=32,
    unet=dict(
      channels=3,
      width=64,
      multipliers=(1, 2, 2),
      num_blocks=1,
      attention_at=(2, 4),
      head_dim=32,
      joint_attention=True,
      scale_shift=True,
      residual_resampling=True,
      groups=8,
    ),
    image_size=16,
    text_length=24,
    context_width=128,
    process=dict(schedule="cosine", prediction="v"),
    weighting="min_snr",
  )
  config.steps = 1200
  config.data.batch_size = 64
  config.optim.update(
    dict(lr=1e-3, warmup_steps=100, final_lr_ratio=0.05, b2=0.99, ema_decay=0.998)
  )
  return config


def folder() -> ml_collections.ConfigDict:
  """Your own images and captions: --config.data.source=folder:PATH, above a run of configs/clip.py:folder in
  runs/clip_folder; 16x16 pixels.
  """
  config = unclip.of_folder(emoji())
  config.model.clip = dict(source="runs/clip_folder")
  config.model.clip_size = 64
  return config


VARIANTS = dict(smoke=smoke, folder=folder, emoji=emoji)
