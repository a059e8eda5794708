"""Diffusion in pixels.

  python -m vlx.train --config=configs/ddpm.py:VARIANT --workdir=runs/ddpm

`paper` is DDPM on CIFAR-10, `lsun` at 256 pixels; `adm_imagenet64` is ADM's network on ImageNet at 64, of classes, with
learned variances.
"""

import ml_collections

from vlx.core.config import finalize, select_variant
from vlx.train import defaults

# The UNet of the paper (appendix B), but for width and levels.
DDPM_UNET = dict(symmetric_padding=False, cos_first=False, frequency_shift=1, epsilon=1e-6)
ADM_UNET = dict(
  attention_at=(2, 4, 8), head_dim=64, scale_shift=True, residual_resampling=True, num_blocks=3
)
HOURS = dict(
  lr=5e-4, warmup_steps=200, final_lr_ratio=0.05, b2=0.99, weight_decay=0.01, ema_decay=0.999
)
# The kernels of convolutions over the two axes that share parameters.
PARTITION = ((r".*(conv\d?|in|out)/kernel", (None, None, None, "fsdp")), (r".*", ()))


def get_config(variant: str = "emoji") -> ml_collections.ConfigDict:
  return finalize(select_variant(VARIANTS, variant)())


def _base(size: int) -> ml_collections.ConfigDict:
  config = defaults.get_config()
  config.system = "vlx.models.generation.ddpm.DDPM"
  config.data.source = "tfds:emoji"
  config.data.batch_size = 32
  config.data.image_transform = f"decode|resize({size})|normalize"
  config.data.preprocess = f'decode|resize({size})|cache|flip_lr|normalize|keep("image")'
  config.evaluators = dict(
    generation=dict(
      type="vlx.evaluate.tasks.generation.Generation",
      splits=("combo",),
      prompts=8,
      samples=8,
      nearest_in="",
      sampler=dict(num_steps=50),
    ),
    loss=dict(type="vlx.evaluate.tasks.loss.HeldOutLoss", splits=("train", "combo", "concept")),
  )
  return config


def smoke() -> ml_collections.ConfigDict:
  """Seconds; the tests use it."""
  config = _base(size=16)
  config.model = dict(
    image_size=16,
    unet=dict(channels=3, width=8, multipliers=(1, 2), num_blocks=1, attention_at=(2,), groups=4),
  )
  config.steps = 4
  config.log_every = 1
  config.optim.lr = 1e-3
  config.evaluators.generation.update(dict(prompts=2, samples=2, sampler=dict(num_steps=2)))
  config.evaluators.loss.splits = ("combo",)
  return config


def emoji() -> ml_collections.ConfigDict:
  """64x64 images of a text, whose encoder learns along: for a GPU (benchmarks/gpu/ddpm_emoji.sh)."""
  text_length, vocab_size = 16, 4000
  config = _base(size=64)
  config.model = dict(
    image_size=64,
    text_encoder=dict(
      system="vlx.models.contrastive.clip.CLIPTextEncoder",
      text=dict(
        vocab_size=vocab_size,
        context_length=text_length,
        width=256,
        depth=2,
        num_heads=4,
        mlp_dim=1024,
        causal=False,
      ),
    ),
    text_length=text_length,
    unet=dict(
      channels=3,
      width=96,
      multipliers=(1, 2, 2, 3),
      attention_at=(4, 8),
      head_dim=32,
      transformer_depth=1,
      dtype="bfloat16",
    ),
    process=dict(schedule="cosine", prediction="v"),
    weighting="min_snr",
  )
  tokenize = f'tokenize("caption", {text_length})'
  config.tokenizer = dict(vocabulary="", vocab_size=vocab_size, fields=("caption",))
  config.data.preprocess = (
    f'decode|resize(64)|cache|normalize|{tokenize}|keep("image", "text", "text_mask")'
  )
  config.data.batch_size = 128
  config.optim.rules = (*config.optim.rules, (r"text_encoder/.*", dict(frozen=False)))
  config.steps = 6000
  config.optim.update(HOURS)
  splits = ("train", "combo", "concept")
  config.evaluators.generation.update(
    dict(splits=splits, sampler=dict(num_steps=20, method="dpm_solver", guidance_scale=2.0))
  )
  config.evaluators.loss.ops = tokenize
  return config


def ablation() -> ml_collections.ConfigDict:
  """16x16 images of nothing, judged by a run of configs/clip.py:demo: what experiments/ddpm_*.py vary."""
  config = _base(size=16)
  config.model = dict(
    image_size=16,
    unet=dict(
      channels=3, width=32, multipliers=(1, 2, 2), num_blocks=1, attention_at=(2, 4), groups=8
    ),
    process=dict(schedule="cosine"),
  )
  config.steps = 600
  config.data.batch_size = 64
  config.optim.update(
    dict(lr=2e-3, warmup_steps=30, final_lr_ratio=0.05, b2=0.99, weight_decay=0.01, ema_decay=0.98)
  )
  config.evaluators.fidelity = dict(
    type="vlx.evaluate.tasks.fidelity.Fidelity",
    splits=("combo",),
    features="runs/clip_judge",
    count=404,
    sampler=dict(num_steps=50),
  )
  config.evaluators.loss.splits = ("combo",)
  return config


def paper() -> ml_collections.ConfigDict:
  """Appendix B, CIFAR-10: 35.7M parameters, batch 128, 800,000 steps."""
  config = _base(size=32)
  config.model = dict(
    image_size=32,
    unet=dict(
      channels=3, width=128, multipliers=(1, 2, 2, 2), attention_at=(2,), dropout=0.1, **DDPM_UNET
    ),
  )
  config.data.source = "tfds:cifar10"
  config.data.batch_size = 128
  config.data.preprocess = 'decode|flip_lr|normalize|keep("image")'
  config.data.image_transform = "decode|resize(32)|normalize"
  config.steps = 800_000
  config.optim.update(
    dict(lr=2e-4, warmup_steps=5000, schedule="constant", clip_norm=1.0, ema_decay=0.9999, rules=())
  )
  config.evaluators.generation.update(
    dict(splits=("test",), sampler=dict(num_steps=1000, method="ancestral", variance=1.0))
  )
  config.evaluators.loss.splits = ("test",)
  return config


def lsun() -> ml_collections.ConfigDict:
  """Appendix B, LSUN at 256x256: no dropout, batch 64, rate 2e-5; name the source of a scene."""
  config = paper()
  config.model = dict(
    image_size=256,
    unet=dict(
      channels=3, width=128, multipliers=(1, 1, 2, 2, 4, 4), attention_at=(16,), **DDPM_UNET
    ),
  )
  config.data.source = "folder:."
  config.data.batch_size = 64
  config.data.preprocess = (
    'decode|resize_small(256)|central_crop(256)|flip_lr|normalize|keep("image")'
  )
  config.data.image_transform = "decode|resize_small(256)|central_crop(256)|normalize"
  config.steps = 2_400_000
  config.optim.lr = 2e-5
  config.evaluators.generation.splits = config.evaluators.loss.splits = ("val",)
  return config


def adm_imagenet64() -> ml_collections.ConfigDict:
  """ADM, table 12: width 192, three residual blocks, learned variances, cosine schedule, batch 2048, 540,000 steps.

  The released model has no row for "no class"; this one has, and is trained for guidance without a classifier.
  """
  config = _base(size=64)
  config.model = dict(
    image_size=64,
    num_classes=1000,
    unet=dict(
      channels=6,
      width=192,
      multipliers=(1, 2, 3, 4),
      num_classes=1001,
      dropout=0.1,
      remat=True,
      dtype="bfloat16",
      **ADM_UNET,
    ),
    process=dict(schedule="cosine", learned_variance=True),
  )
  config.data.source = "tfds:imagenet2012"
  config.data.batch_size = 2048
  config.data.preprocess = (
    'decode|resize_small(64)|central_crop(64)|flip_lr|normalize|keep("image", "label")'
  )
  config.data.image_transform = "decode|resize_small(64)|central_crop(64)|normalize"
  config.data.update(threads=32, prefetch=8)
  config.steps = 540_000
  config.optim.update(dict(lr=3e-4, schedule="constant", clip_norm=0.0, ema_decay=0.9999, rules=()))
  config.evaluators.generation.update(
    dict(splits=("validation",), sampler=dict(num_steps=250, method="ancestral"))
  )
  config.evaluators.loss.splits = ("validation",)
  return config


def folder() -> ml_collections.ConfigDict:
  """Your own images: --config.data.source=folder:PATH, or another of vlx.data.sources; 64x64 pixels, of no text."""
  config = _base(size=64)
  config.model = dict(
    image_size=64,
    unet=dict(channels=3, width=64, multipliers=(1, 2, 2, 2), attention_at=(8,), groups=8),
    process=dict(schedule="cosine", prediction="v"),
    weighting="min_snr",
  )
  config.steps = 5000
  config.data.batch_size = 64
  config.optim.update(HOURS)
  config.data.source = "folder:."
  config.data.image_transform = "decode|resize_small(64)|central_crop(64)|normalize"
  config.data.preprocess = 'decode|random_resized_crop(64, 0.7)|flip_lr|normalize|keep("image")'
  config.evaluators.generation.splits = config.evaluators.loss.splits = ("val",)
  return config


VARIANTS = dict(
  smoke=smoke,
  emoji=emoji,
  ablation=ablation,
  folder=folder,
  paper=paper,
  lsun=lsun,
  adm_imagenet64=adm_imagenet64,
)
