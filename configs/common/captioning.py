"""What the configs of captioners start from: data, words, evaluation, a small tower."""

import ml_collections

from vlx.train import defaults

# The image tower of configs/clip.py:demo.
SMALL_ENCODER = dict(
  image_size=32,
  patch_size=8,
  stem=(32, 64, 128),
  width=128,
  depth=2,
  num_heads=4,
  mlp_dim=512,
  pool="mean",
  activation="gelu_tanh",
  initialization="clip",
  unroll=2,
)
# What learns to tell the objects of scenes apart (configs/vit.py:objects): its map has a cell for
# 8x8 pixels.
BACKBONE = dict(stage_sizes=(1, 1, 1, 1), bottleneck=False, width=24, stem="cifar")
# The hybrid of ViT's §3.1: above that map, two layers of attention that know where each cell is.
SCENES_ENCODER = dict(
  image_size=64,
  patch_size=8,
  backbone=BACKBONE,
  width=128,
  depth=2,
  num_heads=4,
  mlp_dim=512,
  pool="mean",
  activation="gelu_tanh",
  initialization="clip",
  unroll=2,
)
# Of torchvision's weights; but GoogLeNet's want [-1, 1] (`transform_input`), `normalize` alone.
IMAGENET = "normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))"
FREEZE = (r"encoder/.*", dict(frozen=True))  # an optimizer rule


def _captioning(
  source: str,
  image_transform: str,
  augment: str,
  vocab_size: int,
  min_count: int,
  text_length: int,
  splits: tuple[str, ...],
  tokenizer: str,
  beam_size: int,
) -> ml_collections.ConfigDict:
  config = defaults.get_config()
  config.data.source = source
  config.data.image_transform = image_transform
  config.data.preprocess = f'{augment}|choose("caption")|tokenize("caption", {text_length})|keep("image", "text", "text_mask")'
  config.tokenizer = dict(
    kind="words", vocab_size=vocab_size, min_count=min_count, fields=("caption",)
  )
  config.evaluators = dict(
    captions=dict(
      type="vlx.evaluate.tasks.captions.Captions",
      splits=splits,
      tokenizer=tokenizer,
      beam_size=beam_size,
      max_length=text_length - 1,
    )
  )
  return config


def small_emoji() -> ml_collections.ConfigDict:
  """Names of emoji; evaluated on tones never seen with them, and in another hand."""
  size = 32
  return _captioning(
    "tfds:emoji",
    f"decode|resize({size})|normalize",
    f'decode("RGBA")|resize({size * 5 // 4})|cache|random_affine({size}, 0.85, 1.15, 8)|background|'
    "color_jitter(0.3)|normalize",
    vocab_size=3000,
    min_count=1,
    text_length=16,
    splits=("combo", "style"),
    tokenizer="words",
    beam_size=3,
  )


def emoji() -> ml_collections.ConfigDict:
  """The tower starts at that of the CLIP of `make demo`."""
  config = small_emoji()
  config.init = (dict(source="runs/demo", take="image", put="encoder"),)
  config.steps = 800
  config.data.batch_size = 128
  config.optim.update(
    dict(
      lr=4e-3,
      warmup_steps=50,
      weight_decay=0.02,
      ema_decay=0.99,
      rules=(*config.optim.rules, (r"encoder/.*", dict(lr_scale=0.2))),
    )
  )
  return config


def scenes() -> ml_collections.ConfigDict:
  """Scenes; evaluated on others of the same kind, on combinations and on nouns never seen.

  The tower's lower part is that of a run of configs/vit.py:objects.
  """
  config = _captioning(
    "scenes:20000?size=64",
    "decode|resize(64)|normalize",
    "decode|cache|normalize",
    vocab_size=480,
    min_count=5,
    text_length=32,
    splits=("val", "combo", "concept"),
    tokenizer="words",
    beam_size=3,
  )
  config.init = (dict(source="runs/objects", take="tower", put="encoder/backbone"),)
  config.steps = 1200
  config.data.batch_size = 64
  config.optim.update(
    dict(
      lr=2e-3,
      warmup_steps=100,
      weight_decay=0.02,
      ema_decay=0.99,
      rules=(*config.optim.rules, (r"encoder/backbone/.*", dict(frozen=True))),
    )
  )
  return config


# Four layers above a stem of convolutions; a map of 8x8 places.
FOLDER_ENCODER = dict(SMALL_ENCODER, image_size=64, depth=4)


def folder() -> ml_collections.ConfigDict:
  """People's own images, some hundreds to thousands of them; a tenth is held out for evaluation."""
  size = FOLDER_ENCODER["image_size"]
  config = _captioning(
    "folder:.",
    f"decode|resize_small({size})|central_crop({size})|normalize",
    f"decode|random_resized_crop({size}, 0.5)|normalize",
    vocab_size=3000,
    min_count=1,
    text_length=24,
    splits=("val",),
    tokenizer="words",
    beam_size=3,
  )
  config.steps = 2000
  config.data.batch_size = 64
  config.optim.update(dict(lr=2e-3, warmup_steps=100, weight_decay=0.02, ema_decay=0.99))
  return config


def photographs(
  source: str, vocab_size: int, min_count: int, crop: str, normalize: str
) -> ml_collections.ConfigDict:
  """COCO or Flickr in the sizes of ImageNet's towers, as torchvision resized for them.

  `crop` is what training makes of 256 pixels, `normalize` what the tower's weights want.
  """
  small = "decode|resize_small(256, method='bilinear')"
  config = _captioning(
    source,
    f"{small}|central_crop(224, half='even')|{normalize}",
    f"{small}|{crop}|{normalize}",
    vocab_size,
    min_count,
    text_length=32,
    splits=("val", "test"),
    tokenizer="ptb",
    beam_size=20,
  )
  config.data.update(dict(threads=16, prefetch=16))
  return config


def ablation(config: ml_collections.ConfigDict, run: str) -> ml_collections.ConfigDict:
  """A scenes config cut to two minutes on one core: above the frozen tower of a finished run."""
  config.init = (dict(source=run, take="encoder", put="encoder"),)
  config.data.source = "scenes:3000?size=64&held_out=300"
  config.data.batch_size = 32
  config.steps = 250
  config.optim.update(dict(rules=(FREEZE,), warmup_steps=20))
  return config
