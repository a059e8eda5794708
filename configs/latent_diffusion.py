"""Latent diffusion.

The autoencoder, the diffusion above it, the judges of DALL-E's figures (configs/dalle.py), and `judged`, which is `emoji`
measured by them too:

  python -m vlx.train --config=configs/autoencoder.py:emoji --workdir=runs/autoencoder
  python -m vlx.train --config=configs/latent_diffusion.py:emoji --workdir=runs/ldm

  python -m vlx.train --config=configs/clip.py:demo --workdir=runs/clip_judge --config.seed=1
  python -m vlx.train --config=configs/vit.py:groups --workdir=runs/groups
  python -m vlx.train --config=configs/vit.py:tones --workdir=runs/tones

  python -m vlx.evaluate --workdir=runs/ldm --config=configs/latent_diffusion.py:judged
  python -m vlx.generate --workdir=runs/ldm --prompt="red apple" --num=16 --num_steps=20 --guidance_scale=2 --film

What they give: docs/diffusion.md. `paper` is Stable Diffusion 1.4, its text encoder of the public CLIP.
"""

import ml_collections

from vlx.core.config import finalize, part_from, select_variant
from vlx.models.contrastive import clip
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
      channels=2,
      width=8,
      multipliers=(1, 2),
      num_blocks=1,
      attention_at=(2,),
      transformer_depth=1,
      groups=4,
    ),
    process=dict(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
  )
  config.init = (dict(source="random", put="autoencoder"),)
  config.steps = 4
  config.log_every = 1
  config.optim.lr = 1e-3
  config.evaluators.generation.update(
    dict(
      splits=("combo",),
      prompts=2,
      samples=2,
      nearest_in="",
      sampler=dict(num_steps=2, guidance_scale=2.0),
    )
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
  config.steps = 2400
  config.data.batch_size = 64
  config.optim.update(
    dict(
      lr=1e-3, warmup_steps=100, final_lr_ratio=0.05, b2=0.99, weight_decay=0.01, ema_decay=0.998
    )
  )
  return config


def folder() -> ml_collections.ConfigDict:
  """Your own images and captions: --config.data.source=folder:PATH, above a run of configs/autoencoder.py:folder in
  runs/autoencoder_folder.
  """
  config = emoji()
  config.model.autoencoder = dict(source="runs/autoencoder_folder")
  tokenize = f'choose("caption")|tokenize("caption", {config.model.text_length})'
  config.data.source = "folder:."
  config.data.image_transform = "decode|resize_small(64)|central_crop(64)|normalize"
  config.data.preprocess = (
    f'decode|random_resized_crop(64, 0.7)|normalize|{tokenize}|keep("image", "text", "text_mask")'
  )
  config.evaluators.generation.splits = config.evaluators.loss.splits = ("val",)
  config.evaluators.loss.ops = tokenize
  return config


def judged() -> ml_collections.ConfigDict:
  """`emoji` beside what runs of other systems say of its images; each is trained by a command above."""
  config = emoji()
  config.evaluators.generation.update(
    dict(prompts=64, clip="runs/clip_judge", classifiers=("runs/groups", "runs/tones"))
  )
  config.evaluators.fidelity = dict(
    type="vlx.evaluate.tasks.fidelity.Fidelity",
    splits=("combo", "concept"),
    sampler=SAMPLING,
    features="runs/clip_judge",
    count=1000,
  )
  return config


def ablation() -> ml_collections.ConfigDict:
  """32x32 images in the 8x8 latents of a run of configs/autoencoder.py:ablation in runs/autoencoder_ablation, judged as
  above: two minutes on one core. What experiments/ldm_*.py vary.
  """
  text_length, vocab_size = 12, 2000
  config = _emoji(32, text_length, vocab_size)
  config.model = dict(
    image_size=32,
    autoencoder=dict(source="runs/autoencoder_ablation"),
    text_encoder=_text_encoder(vocab_size, text_length, 96, 2),
    text_length=text_length,
    unet=dict(
      channels=4,
      width=48,
      multipliers=(1, 2),
      num_blocks=1,
      attention_at=(2,),
      num_heads=3,
      transformer_depth=1,
      groups=8,
    ),
    process=dict(schedule="cosine", prediction="v"),
    weighting="min_snr",
  )
  config.steps = 400
  config.data.batch_size = 64
  config.optim.update(
    dict(lr=2e-3, warmup_steps=30, final_lr_ratio=0.05, b2=0.99, weight_decay=0.01, ema_decay=0.98)
  )
  judge = dict(splits=("combo",), sampler=SAMPLING)
  config.evaluators.generation.update(
    dict(
      judge, prompts=64, clip="runs/clip_judge", classifiers=("runs/groups", "runs/tones"), rows=4
    )
  )
  config.evaluators.generation.nearest_in = ""
  config.evaluators.fidelity = dict(
    judge, type="vlx.evaluate.tasks.fidelity.Fidelity", features="runs/clip_judge", count=404
  )
  config.evaluators.loss.splits = ("combo",)
  return config


CLIP_START, CLIP_END = 49_406, 49_407
# The kernels of convolutions and dense layers over the devices that share parameters.
PARTITION = (
  (r"(?!autoencoder|text_encoder).*/(conv\d?)/kernel", (None, None, None, "fsdp")),
  (r"(?!autoencoder|text_encoder).*/(conv1|conv2|shortcut|in|embedding|fc1|fc2)/kernel", ("fsdp",)),
  (r".*", ()),
)


def paper() -> ml_collections.ConfigDict:
  """Stable Diffusion 1.4 at 512x512: UNet of 860M, batch 2048, 225,000 steps from 1.2, texts left out one time in ten.

  The autoencoder is named by its config, so that the step can be compiled: to train, name the run that has learned it,
  or `dict(source="hub:stabilityai/sd-vae-ft-mse")`.
  """
  config = defaults.get_config()
  config.system = "vlx.models.generation.latent_diffusion.LatentDiffusion"
  text = clip.published_size("L/14")["text"]
  config.model = dict(
    image_size=512,
    unet=dict(
      channels=4,
      width=320,
      multipliers=(1, 2, 4, 4),
      attention_at=(1, 2, 4),
      num_heads=8,
      transformer_depth=1,
      remat=True,
      dtype="bfloat16",
    ),
    autoencoder={
      **part_from("configs/autoencoder.py:paper"),
      "image_size": 512,
      "adversarial_weight": 0.0,
    },
    latent_scale=0.18215,
    text_encoder=dict(
      system="vlx.models.contrastive.clip.CLIPTextEncoder", text={**text, "dtype": "bfloat16"}
    ),
    empty_text=(CLIP_START, *(CLIP_END,) * 76),
    process=dict(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, ends_clean=False),
  )
  config.init = (
    dict(source="hub:openai/clip-vit-large-patch14", take="text", put="text_encoder/text"),
  )
  config.tokenizer = dict(
    vocabulary="bpe_simple_vocab_16e6.txt.gz", vocab_size=49_408, fields=("caption",)
  )
  config.data.source = "folder:."
  config.data.batch_size = 2048
  config.data.preprocess = (
    'decode|resize_small(512)|random_crop(512)|normalize|choose("caption")|tokenize("caption", 77)|'
    'keep("image", "text", "text_mask")'
  )
  config.data.image_transform = "decode|resize_small(512)|central_crop(512)|normalize"
  config.data.update(threads=32, prefetch=8)
  config.steps = 225_000
  config.optim.update(
    dict(
      lr=1e-4,
      warmup_steps=10_000,
      schedule="constant",
      weight_decay=0.01,
      clip_norm=0.0,
      ema_decay=0.9999,
    )
  )
  # Parts rest in half precision.
  config.optim.rules = (
    *config.optim.rules,
    (r"(autoencoder|text_encoder)/.*", dict(frozen=True, dtype="bfloat16")),
  )
  config.partition = PARTITION
  config.evaluators = dict(
    generation=dict(
      type="vlx.evaluate.tasks.generation.Generation",
      splits=("val",),
      sampler=dict(num_steps=50, guidance_scale=7.5),
    )
  )
  return config


VARIANTS = dict(
  smoke=smoke, emoji=emoji, judged=judged, ablation=ablation, folder=folder, paper=paper
)
