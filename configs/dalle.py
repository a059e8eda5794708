"""DALL-E.

The codes, the transformer, and, in a second terminal meanwhile, the judges: a CLIP that picks the
best of many samples, another that scores them, classifiers of the emoji's group and skin tone.
`judged` is `emoji` measured by them too:

  python -m vlx.train --config=configs/vqvae.py:emoji --workdir=runs/vqvae          # 23 minutes
  python -m vlx.train --config=configs/dalle.py:emoji --workdir=runs/dalle          # 25

  python -m vlx.train --config=configs/clip.py:demo --workdir=runs/clip             # 4
  python -m vlx.train --config=configs/clip.py:demo --workdir=runs/clip_judge --config.seed=1        # 5
  python -m vlx.train --config=configs/vit.py:groups --workdir=runs/groups          # 2
  python -m vlx.train --config=configs/vit.py:tones --workdir=runs/tones            # 2

  python -m vlx.evaluate --workdir=runs/dalle --config=configs/dalle.py:judged      # 3
  python -m vlx.generate --workdir=runs/dalle --prompt="red apple" --num=64 --rerank=runs/clip \
      --sampler=temperature=0.7,guidance_scale=2

52 minutes in all on two CPU cores, each terminal on its own (`export
GLIBC_TUNABLES=glibc.malloc.hugetlb=1`, and `taskset -c 0` or `taskset -c 1` before each command of
theirs), the last two commands on both.

`ablation` is what experiments/dalle_*.py vary; its tokenizer is made by

  python -m vlx.train --config=configs/vqvae.py:ablation --workdir=runs/vqvae_ablation

What they give: docs/results/dalle.md. After 3,500 steps `emoji` knows its images by heart: the loss of a
real image's code is 0.4 nats on `train`, 2.8 on `combo`, 6.9 on `concept`.
"""

import ml_collections

from vlx.core.config import finalize, part_from, select_variant
from vlx.models.generation import dalle
from vlx.train import defaults

PARTITION = (
  (r"(text|image)_embedding/embedding", ("fsdp", None)),
  (r"(text|image)_head/kernel", ("fsdp", "tensor")),
  *defaults.TRANSFORMER_PARTITION,
)


NO_DECAY = (r".*(bias|scale|padding|image_start|_position)", dict(weight_decay=0.0))

# Guidance is a later practice (Ho & Salimans, 2022), for which `text_dropout` trains the
# unconditional model.
SAMPLING = dict(temperature=0.7, guidance_scale=2.0)


def get_config(variant: str = "emoji") -> ml_collections.ConfigDict:
  return finalize(select_variant(VARIANTS, variant)())


def _emoji(size: int, text_length: int, vocab_size: int) -> ml_collections.ConfigDict:
  config = defaults.get_config()
  config.system = "vlx.models.generation.dalle.DALLE"
  config.data.source = "tfds:emoji"
  config.data.image_transform = f"decode|resize({size})|normalize"
  tokenize = f'tokenize("caption", {text_length})'
  config.data.preprocess = (
    f'decode|resize({size})|cache|normalize|{tokenize}|keep("image", "text", "text_mask")'
  )
  config.data.batch_size = 32
  config.tokenizer = dict(vocabulary="", vocab_size=vocab_size, fields=("caption",))
  config.evaluators = _evaluators(("train", "combo", "concept"), tokenize, nearest_in="train")
  return config


def _evaluators(splits: tuple[str, ...], tokenize: str, nearest_in: str = "") -> dict:
  return dict(
    generation=dict(
      type="vlx.evaluate.tasks.generation.Generation",
      splits=splits,
      prompts=8,
      samples=8,
      clip="",
      classifiers=(),
      nearest_in=nearest_in,
      sampler={},
    ),
    # `image` is the loss of a real image's code, in nats.
    loss=dict(type="vlx.evaluate.tasks.loss.HeldOutLoss", splits=splits, ops=tokenize),
  )


def smoke() -> ml_collections.ConfigDict:
  """Seconds; the tests use it. Its tokenizer is not trained."""
  config = _emoji(size=16, text_length=12, vocab_size=1000)
  config.model = dict(
    tokenizer=part_from("configs/vqvae.py:smoke"),
    vocab_size=1000,
    context_length=12,
    width=32,
    depth=3,
    num_heads=2,
    mlp_dim=64,
    conv_size=3,
  )
  config.init = (dict(source="random", put="tokenizer"),)
  config.steps = 4
  config.log_every = 1
  config.optim.lr = 1e-3
  config.evaluators.generation.update(dict(splits=("combo",), prompts=2, samples=2))
  config.evaluators.loss.splits = ("combo",)
  return config


def emoji() -> ml_collections.ConfigDict:
  """64x64 images as 8x8 codes (configs/vqvae.py:emoji), after texts of up to 16 tokens."""
  text_length, vocab_size = 16, 4000
  config = _emoji(64, text_length, vocab_size)
  config.model = dict(
    tokenizer=dict(source="runs/vqvae"),
    vocab_size=vocab_size,
    context_length=text_length,
    width=192,
    depth=6,
    num_heads=6,
    mlp_dim=768,
    conv_size=5,
    text_dropout=0.1,
    unroll=6,
  )
  config.evaluators.generation.sampler = SAMPLING
  config.steps = 2000
  config.optim.update(
    dict(
      lr=1.5e-3,
      warmup_steps=100,
      final_lr_ratio=0.05,
      b2=0.96,
      weight_decay=0.045,
      ema_decay=0.995,
      rules=(NO_DECAY,),
    )
  )
  return config


def judged() -> ml_collections.ConfigDict:
  """`emoji` beside what runs of other systems say of its images; each is trained by a command
  above.
  """
  config = emoji()
  generation = config.evaluators.generation
  generation.update(
    dict(prompts=64, clip="runs/clip_judge", classifiers=("runs/groups", "runs/tones"))
  )
  common = dict(sampler=SAMPLING, splits=("combo", "concept"))
  config.evaluators.reranking = dict(
    common,
    type="vlx.evaluate.tasks.reranking.Reranking",
    rerank="runs/clip",
    clip="runs/clip_judge",
    classifiers=generation.classifiers,
    prompts=16,
    samples=64,
  )
  config.evaluators.fidelity = dict(
    common, type="vlx.evaluate.tasks.fidelity.Fidelity", features="runs/clip_judge", count=1000
  )
  return config


def ablation() -> ml_collections.ConfigDict:
  """32x32 images as 8x8 codes, after texts of up to 12 tokens: a minute and a half on one core."""
  text_length, vocab_size = 12, 2000
  config = _emoji(32, text_length, vocab_size)
  config.model = dict(
    tokenizer=dict(source="runs/vqvae_ablation"),
    vocab_size=vocab_size,
    context_length=text_length,
    width=96,
    depth=4,
    num_heads=3,
    mlp_dim=384,
    pattern=("row", "column", "row", "row"),
    last_mask="conv",
    conv_size=5,
    text_weight=1 / 8,
    unroll=4,
  )
  config.steps = 300
  config.optim.update(dict(lr=3e-3, warmup_steps=30, final_lr_ratio=0.05, b2=0.96, ema_decay=0.98))
  config.evaluators.generation.update(dict(prompts=4, samples=4))
  return config


def paper() -> ml_collections.ConfigDict:
  """Appendix B: 12 billion parameters, batch 1,024, 430,000 updates; name a source of your own.

  The step size rises to 4.5e-4 over 5,000 updates and was halved five times, whenever the loss no
  longer fell: here it falls along a cosine to 1/32. The published average decays by 0.99 every 25
  updates. Listing 2's crops are a square near the middle and, of it, a part of 8/9 of its side or
  more. The tokenizer is named by its config, so that the step can be compiled: to train, name the
  run that has learned it.

  On v5e:16x16 (python -m vlx.compile --config=configs/dalle.py:paper --topology=v5e:16x16, half an
  hour on half a CPU core) a step fits with 7.03 of each chip's 15.75 GiB: 0.38 of parameters, 0.76
  of the optimizer's state, 0.74 of moving averages and tokenizer, 5.15 of temporaries. 1.008e17
  model FLOPs, two seconds at the chips' peak. On v5e:8x16 10.20 GiB, 8.32 of them temporaries, and
  four seconds. The state is split 128 ways (`fsdp`), the batch over all chips.
  """
  config = defaults.get_config()
  config.system = "vlx.models.generation.dalle.DALLE"
  config.model = dict(
    dalle.published_size(),
    tokenizer=part_from("configs/dvae.py:paper"),
    remat=True,
    dtype="bfloat16",
  )
  config.tokenizer = dict(vocabulary="", vocab_size=16_384, fields=("caption",))
  config.data.source = "folder:."
  config.data.batch_size = 1024
  config.data.preprocess = (
    'decode|square_crop(0.25)|random_resized_crop(256, 0.79, 1.0)|normalize|choose("caption")|'
    'tokenize("caption", 256, dropout=0.1)|keep("image", "text", "text_mask")'
  )
  config.data.update(threads=32, prefetch=8)
  config.steps = 430_000
  config.optim.update(
    dict(
      lr=4.5e-4,
      warmup_steps=5000,
      final_lr_ratio=1 / 32,
      b1=0.9,
      b2=0.96,
      eps=1e-8,
      weight_decay=4.5e-2,
      clip_norm=4.0,
      ema_decay=0.99 ** (1 / 25),
      rules=(NO_DECAY,),
    )
  )
  # Of 256 chips 128 share the parameters; -1: two such groups on v5e:16x16, one on v5e:8x16.
  config.mesh.update(dict(data=-1, fsdp=128))
  config.partition = PARTITION
  config.data.image_transform = "decode|resize_small(256)|central_crop(256)|normalize"
  config.evaluators = _evaluators(("val",), 'tokenize("caption", 256)')
  return config


def folder() -> ml_collections.ConfigDict:
  """Your own images: --config.data.source=folder:PATH, above a run of configs/vqvae.py:folder in
  runs/vqvae_folder.
  """
  config = emoji()
  config.model.tokenizer = dict(source="runs/vqvae_folder")
  text_length = config.model.context_length
  tokenize = f'tokenize("caption", {text_length})'
  config.data.source = "folder:."
  config.data.image_transform = "decode|resize_small(64)|central_crop(64)|normalize"
  config.data.preprocess = f'decode|random_resized_crop(64, 0.7)|normalize|choose("caption")|{tokenize}|keep("image", "text", "text_mask")'
  config.evaluators = _evaluators(("val",), f'choose("caption")|{tokenize}', nearest_in="train")
  config.evaluators.generation.sampler = SAMPLING
  return config


VARIANTS = dict(
  smoke=smoke, emoji=emoji, judged=judged, folder=folder, ablation=ablation, paper=paper
)
