"""CLIP.

  python -m vlx.train --config=configs/clip.py:VARIANT --workdir=runs/clip

`demo` takes five minutes on two CPU cores, `emoji` half an hour: docs/results/clip.md.
"""

import ml_collections

from configs.common import captioning
from vlx.core.config import finalize, select_variant
from vlx.models.contrastive import clip
from vlx.train import defaults

# Towards what another hand would draw: other colors and backgrounds, outlines, lines alone.
AUGMENT = (
  "random_affine({size}, 0.85, 1.15, 8)|outline(0.3)|background|ink(0.2)|color_jitter(0.4)|"
  "grayscale(0.05)|posterize(0.05)|random_erase(0.05)|normalize"
)
TEXT = (
  "add_keywords(0.3, 0.05)|shuffle_words(0.1)|"
  'template("{{}}", "{{}}", "{{}}", "a picture of {{}}", "an emoji of {{}}")|'
  'tokenize("caption", {text_length})|keep("image", "text", "text_mask")'
)
# Colour and HOG features, kernel ridge regression to TF-IDF of the captions.
BASELINES = {"combo": (21.0, 71.2), "concept": (3.3, 17.3), "style": (6.9, 11.8)}


def get_config(variant: str = "emoji") -> ml_collections.ConfigDict:
  return finalize(select_variant(VARIANTS, variant)())


def _emoji(size: int, text_length: int, vocab_size: int) -> ml_collections.ConfigDict:
  config = defaults.get_config()
  config.system = "vlx.models.contrastive.clip.CLIP"
  config.data.source = "tfds:emoji"
  config.data.image_transform = f"decode|resize({size})|normalize"
  config.data.preprocess = "|".join(
    [
      f'decode("RGBA")|resize({size * 5 // 4})|cache',
      AUGMENT.format(size=size),
      TEXT.format(text_length=text_length),
    ]
  )
  config.tokenizer = dict(vocabulary="", vocab_size=vocab_size, fields=("caption", "keywords"))
  splits = tuple(BASELINES)
  config.evaluators = dict(
    retrieval=dict(
      type="vlx.evaluate.tasks.retrieval.Retrieval",
      splits=splits,
      gallery=("train", "combo", "concept"),
    ),
    attention=dict(type="vlx.evaluate.tasks.attention.Attention", splits=("combo",)),
  )
  for split, (r1, r5) in BASELINES.items():
    config.baselines[f"retrieval/{split}/image_to_text_r1"] = r1
    config.baselines[f"retrieval/{split}/image_to_text_r5"] = r5
  return config


def smoke() -> ml_collections.ConfigDict:
  """Seconds; the tests use it."""
  config = _emoji(size=32, text_length=16, vocab_size=1000)
  tower = dict(width=32, depth=2, num_heads=2, mlp_dim=64)
  config.model = dict(
    image=dict(image_size=32, patch_size=8, **tower),
    text=dict(vocab_size=1000, context_length=16, **tower),
    embed_dim=32,
  )
  config.steps = 8
  config.data.batch_size = 32
  config.log_every = 1
  config.optim.lr = 1e-3
  return config


def _small(size: int, depth: int) -> ml_collections.ConfigDict:
  """Towers for two CPU cores: a convolutional stem and two layers; a bag of words.

  Names of emoji need no grammar, and a text tower of depth 0 learns them faster than one of depth
  1. With this vocabulary every word of the captions is one token, so the pieces in which an unknown
  word comes were hardly ever trained. Embeddings start at zero: such a word says nothing, and its
  caption is found by the words around it.
  """
  vocab_size, text_length = 6000, 24
  config = _emoji(size, text_length, vocab_size)
  tower = dict(
    width=128, num_heads=4, mlp_dim=512, activation="gelu_tanh", initialization="clip", unroll=2
  )
  config.model = dict(
    image=dict(
      image_size=size, patch_size=8, stem=(32, 64, 128), pool="mean", depth=depth, **tower
    ),
    text=dict(
      vocab_size=vocab_size,
      context_length=text_length,
      depth=0,
      causal=False,
      pool="mean",
      embedding_std=0.0,
      token_norm=1e-3,
      token_dropout=0.1,
      **tower,
    ),
    embed_dim=128,
    init_scale=20.0,
  )
  config.optim.update(dict(lr=2e-3, warmup_steps=40, weight_decay=0.1, b2=0.98))
  return config


def demo() -> ml_collections.ConfigDict:
  """Five minutes on two CPU cores."""
  config = _small(size=32, depth=2)
  config.steps = 620
  config.evaluators.retrieval.every = 200
  config.optim.ema_decay = 0.98
  return config


def emoji() -> ml_collections.ConfigDict:
  """Half an hour on two CPU cores: 0.55 s a step, 26 minutes, and the evaluations."""
  config = _small(size=40, depth=2)
  config.steps = 2800
  config.evaluators.retrieval.every = 700
  config.optim.ema_decay = 0.998
  # 40 was the best of 20, 40 and 80 by these splits' own figures, in a run of 400 steps.
  config.evaluators.normalized = {
    **config.evaluators.retrieval.to_dict(),
    "bank": "train",
    "bank_scale": 40.0,
  }
  for key, value in list(config.baselines.items()):
    config.baselines[key.replace("retrieval", "normalized")] = value
  return config


def scenes() -> ml_collections.ConfigDict:
  """Scenes and their captions, above the tower of a run of configs/vit.py:nouns.

  Captions of the nearest training images are a baseline of captioners. R@1 from image to caption is 41.6 on `val`.
  Above configs/vit.py:objects, which knows colors too, it tells images apart by them, and R@1 is 28.4
  (--config.init='({"source": "runs/objects", "take": "tower", "put": "image/backbone"},)').
  """
  config = captioning.scenes()
  config.system = "vlx.models.contrastive.clip.CLIP"
  captions, text_length = config.evaluators.captions, 32
  config.model = dict(
    image=captioning.SCENES_ENCODER,
    text=dict(
      vocab_size=config.tokenizer.vocab_size,
      context_length=text_length,
      width=128,
      depth=2,
      num_heads=4,
      mlp_dim=512,
      unroll=2,
    ),
    embed_dim=128,
  )
  config.init = (dict(source="runs/nouns", take="tower", put="image/backbone"),)
  config.steps = 500
  config.optim.update(
    dict(rules=(*config.optim.rules[:-1], (r"image/backbone/.*", dict(lr_scale=0.2))), b2=0.98)
  )
  config.evaluators = dict(
    retrieval=dict(
      type="vlx.evaluate.tasks.retrieval.Retrieval",
      splits=("val", "combo"),
      gallery=("val", "combo"),
    ),
    neighbours=dict(
      type="vlx.evaluate.tasks.captions.NearestNeighbour",
      splits=captions.splits,
      tokenizer=captions.tokenizer,
    ),
  )
  return config


def folder() -> ml_collections.ConfigDict:
  """Your own images: --config.data.source=folder:PATH, or another of vlx.data.sources."""
  size, text_length = 64, 24
  config = _small(size, depth=4)
  # Sentences have an order, unlike names.
  config.model.text.update(dict(depth=4, embedding_std=0.02, token_norm=0.0, token_dropout=0.0))
  config.steps = 5000
  config.optim.update(dict(lr=1e-3, warmup_steps=200, ema_decay=0.998))
  config.data.source = "folder:."
  config.data.preprocess = (
    f"decode|random_resized_crop({size}, 0.5)|normalize|"
    f'choose("caption")|tokenize("caption", {text_length})|keep("image", "text", "text_mask")'
  )
  config.tokenizer.fields = ("caption",)
  config.data.image_transform = f"decode|resize_small({size})|central_crop({size})|normalize"
  config.evaluators.retrieval.update(dict(splits=("val",), gallery=("val",)))
  config.evaluators.attention.update(dict(splits=("val",)))
  config.baselines = ml_collections.ConfigDict()
  return config


def paper(name: str) -> ml_collections.ConfigDict:
  """A published CLIP (Tables 17-20): batch 32,768, AdamW, cosine, 32 epochs of 400M pairs.

  WebImageText is not public: name your own source. `tokenizer.vocabulary` is OpenAI's
  bpe_simple_vocab_16e6.txt.gz.
  """
  config = defaults.get_config()
  config.system = "vlx.models.contrastive.clip.CLIP"
  config.model = clip.published_size(name)
  resnet = name.startswith("RN")
  for tower in (config.model.image, config.model.text):
    tower.update(
      dict(dtype="bfloat16") if "stage_sizes" in tower else dict(remat=True, dtype="bfloat16")
    )
  size = config.model.image.image_size
  mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
  config.data.source = "folder:."
  config.data.batch_size = 32_768
  config.data.preprocess = (
    f"decode|resize_small({size})|random_crop({size})|normalize({mean}, {std})|"
    'choose("caption")|tokenize("caption", 77)|keep("image", "text", "text_mask")'
  )
  config.data.image_transform = (
    f"decode|resize_small({size})|central_crop({size})|normalize({mean}, {std})"
  )
  config.data.update(threads=32, prefetch=16)
  config.tokenizer = dict(
    vocabulary="bpe_simple_vocab_16e6.txt.gz", vocab_size=49_408, fields=("caption",)
  )
  config.steps = 32 * 400_000_000 // 32_768
  config.optim.update(
    dict(
      # L/14@336 is L/14 trained for one more epoch at the higher resolution, at 2e-5.
      lr={"B/32": 5e-4, "B/16": 5e-4, "L/14": 4e-4, "L/14@336": 2e-5, "RN50": 5e-4}[name],
      warmup_steps=2000,
      weight_decay=0.2,
      b1=0.9,
      clip_norm=0.0,
      **(dict(b2=0.999, eps=1e-8) if resnet else dict(b2=0.98, eps=1e-6)),
    )
  )
  if name == "L/14@336":
    config.init = (dict(source="runs/clip_l14"),)
    config.steps = 400_000_000 // 32_768
  # The paper and open_clip decay position embeddings, unlike vlx's default.
  config.optim.rules = ((r".*(bias|scale|logit_\w*|cls)", dict(weight_decay=0.0)),)
  config.mesh.update(dict(data=-1, fsdp=4))
  config.partition = defaults.TRANSFORMER_PARTITION
  config.evaluators = dict(
    retrieval=dict(type="vlx.evaluate.tasks.retrieval.Retrieval", splits=("val",), gallery=("val",))
  )
  return config


VARIANTS = dict(
  smoke=smoke,
  demo=demo,
  emoji=emoji,
  scenes=scenes,
  folder=folder,
  paper=lambda: paper("L/14@336"),
  b32=lambda: paper("B/32"),
  b16=lambda: paper("B/16"),
  l14=lambda: paper("L/14"),
  l14_336=lambda: paper("L/14@336"),
  rn50=lambda: paper("RN50"),
)
