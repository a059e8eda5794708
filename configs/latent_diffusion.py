"""Latent diffusion.

  python -m vlx.train --config=configs/latent_diffusion.py:VARIANT --workdir=runs/ldm

`emoji` stands above a run of configs/autoencoder.py:emoji in runs/autoencoder.
"""

import ml_collections

from vlx.core.config import finalize, part_from, select_variant
from vlx.train import defaults


def get_config(variant: str = "emoji") -> ml_collections.ConfigDict:
  return finalize(select_variant(VARIANTS, variant)())


def _emoji(size: int, text_length: int, vocab_size: int) -> ml_collections.ConfigDict:
  config = defaults.get_config()
  config.system = "vlx.models.generation.latent_diffusion.LatentDiffusion"
  config.data.source = "tfds:emoji"
  config.data.image_transform = f"decode|resize({size})|normalize"
  tokenize = f'tokenize("caption", {text_length})'
  config.data.preprocess = (
    f'decode|resize({size})|cache|normalize|{tokenize}|keep("image", "text", "text_mask")'
  )
  config.data.batch_size = 32
  config.tokenizer = dict(vocabulary="", vocab_size=vocab_size, fields=("caption",))
  # The text encoder learns along.
  config.optim.rules = (*config.optim.rules, (r"text_encoder/.*", dict(frozen=False)))
  splits = ("train", "combo", "concept")
  config.evaluators = dict(
    generation=dict(
      type="vlx.evaluate.tasks.generation.Generation",
      splits=splits,
      prompts=8,
      samples=8,
      clip="",
      classifiers=(),
      nearest_in="train",
      sampler={},
    ),
    loss=dict(type="vlx.evaluate.tasks.loss.HeldOutLoss", splits=splits, ops=tokenize),
  )
  return config


def _text_encoder(vocab_size: int, text_length: int, width: int, depth: int) -> dict:
  return dict(
    system="vlx.models.contrastive.clip.CLIPTextEncoder",
    text=dict(
      vocab_size=vocab_size,
      context_length=text_length,
      width=width,
      depth=depth,
      num_heads=max(1, width // 32),
      mlp_dim=4 * width,
      causal=False,
      unroll=max(1, depth),
    ),
  )


def smoke() -> ml_collections.ConfigDict:
  """Seconds; the tests use it. Its autoencoder is not trained."""
  config = _emoji(size=16, text_length=12, vocab_size=1000)
  config.model = dict(
    image_size=16,
    autoencoder=part_from("configs/autoencoder.py:smoke"),
    text_encoder=_text_encoder(1000, 12, 16, 1),
    text_length=12,
    unet=dict(
      channels=2, width=8, multipliers=(1, 2), num_blocks=1, attention_at=(2,), transformer_depth=1, groups=4
    ),
    process=dict(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
  )
  config.init = (dict(source="random", put="autoencoder"),)
  config.steps = 4
  config.log_every = 1
  config.optim.lr = 1e-3
  config.evaluators.generation.update(
    dict(splits=("combo",), prompts=2, samples=2, nearest_in="", sampler=dict(num_steps=2, guidance_scale=2.0))
  )
  config.evaluators.loss.splits = ("combo",)
  return config


SAMPLING = dict(num_steps=20, method="dpm_solver", guidance_scale=2.0)


def emoji() -> ml_collections.ConfigDict:
  """64x64 images in 16x16 latents."""
  text_length, vocab_size = 16, 4000
  config = _emoji(64, text_length, vocab_size)
  config.model = dict(
    image_size=64,
    autoencoder=dict(source="runs/autoencoder"),
    text_encoder=_text_encoder(vocab_size, text_length, 128, 2),
    text_length=text_length,
    unet=dict(
      channels=4,
      width=64,
      multipliers=(1, 2, 2),
      num_blocks=1,
      attention_at=(2, 4),
      num_heads=4,
      transformer_depth=1,
      groups=8,
    ),
    process=dict(schedule="cosine", prediction="v"),
    weighting="min_snr",
  )
  config.evaluators.generation.sampler = SAMPLING
  config.steps = 3000
  config.data.batch_size = 64
  config.optim.update(
    dict(lr=1e-3, warmup_steps=100, final_lr_ratio=0.05, b2=0.99, weight_decay=0.01, ema_decay=0.998)
  )
  return config


VARIANTS = dict(smoke=smoke, emoji=emoji)
