"""ViT.

  python -m vlx.train --config=configs/vit.py:VARIANT --workdir=runs/vit

`emoji_cnn` is a residual network trained as `emoji`; `groups` and `tones` tell an emoji's group and
its skin tone, to judge what configs/dalle.py draws; `objects` tells single objects of scenes and
their colors, for the tower of a captioner, and `nouns` the objects alone, for that of a CLIP; the
paper's are on ImageNet.

`emoji` and `emoji_cnn` take 6 to 9 minutes on two CPU cores: docs/results/vision.md.
"""

import ml_collections

from configs.common import captioning
from vlx.core.config import finalize, select_variant
from vlx.data.datasets.emoji import GROUPS
from vlx.data.datasets.scenes import sprites
from vlx.models.vision import vit
from vlx.train import defaults


def get_config(variant: str = "emoji") -> ml_collections.ConfigDict:
  return finalize(select_variant(VARIANTS, variant)())


def _emoji(size: int) -> ml_collections.ConfigDict:
  """Emoji into Unicode's ten groups, from images alone."""
  config = defaults.get_config()
  config.data.source = "tfds:emoji"
  config.data.batch_size = 128
  config.data.preprocess = (
    f'decode("RGBA")|resize({size * 5 // 4})|cache|random_affine({size}, 0.8, 1.2)|background|'
    'color_jitter(0.5)|grayscale(0.1)|normalize|keep("image", "label")'
  )
  config.data.image_transform = f"decode|resize({size})|normalize"
  config.evaluators = dict(
    classification=dict(
      type="vlx.evaluate.tasks.classification.Classification", splits=("concept", "style")
    )
  )
  config.steps = 600
  config.optim.lr = 1e-3
  config.optim.warmup_steps = 50
  config.optim.weight_decay = 0.1
  return config


def emoji() -> ml_collections.ConfigDict:
  config = _emoji(size=48)
  config.system = "vlx.models.vision.vit.ViT"
  config.model = dict(
    tower=dict(image_size=48, patch_size=8, width=128, depth=4, num_heads=4, mlp_dim=512, unroll=4),
    num_classes=len(GROUPS),
    label_smoothing=0.1,
  )
  config.evaluators.attention = dict(
    type="vlx.evaluate.tasks.attention.Attention", splits=("concept",)
  )
  return config


def emoji_cnn() -> ml_collections.ConfigDict:
  config = _emoji(size=48)
  config.system = "vlx.models.vision.resnet.ResNet"
  config.model = dict(
    tower=dict(stage_sizes=(2, 2, 2), bottleneck=False, width=48, image_size=48),
    num_classes=len(GROUPS),
    label_smoothing=0.1,
  )
  return config


def objects() -> ml_collections.ConfigDict:
  """Single objects of scenes into noun and color: what the tower of a captioner learns first."""
  config = _cut_objects("cut_object(32)", len(sprites.ALL_NOUNS) + 1 + len(sprites.COLORS))
  config.model.num_labels = 2
  config.steps = 1600
  config.optim.lr = 3e-3
  return config


def nouns() -> ml_collections.ConfigDict:
  """`objects` without their colors, for configs/clip.py:scenes: 99.4 % right on `val`, 98.7 on
  `combo`.
  """
  config = _cut_objects("cut_object(32, color=False)", len(sprites.ALL_NOUNS))
  config.steps = 1000
  config.optim.lr = 2e-3
  return config


def _cut_objects(cut: str, num_classes: int) -> ml_collections.ConfigDict:
  config = defaults.get_config()
  config.system = "vlx.models.vision.resnet.ResNet"
  config.model = dict(tower=dict(captioning.BACKBONE, image_size=32), num_classes=num_classes)
  config.data.source = "scenes:20000?size=64"
  config.data.batch_size = 128
  config.data.preprocess = f'decode|cache|{cut}|normalize|keep("image", "label")'
  config.data.image_transform = "decode|resize(32)|normalize"
  config.evaluators = dict(
    classification=dict(
      type="vlx.evaluate.tasks.classification.Classification",
      splits=("val", "combo"),
      image_transform=f"decode|{cut}|normalize",
    )
  )
  config.optim.update(dict(warmup_steps=50, weight_decay=0.05))
  return config


def groups() -> ml_collections.ConfigDict:
  """`emoji_cnn` at half its width, in minutes on one CPU core: a judge of what others draw."""
  config = emoji_cnn()
  config.model.tower.width = 24
  config.evaluators.classification.splits = ("combo", "concept", "style")
  config.steps = 300
  config.optim.lr = 3e-3
  return config


def tones() -> ml_collections.ConfigDict:
  """Without a skin tone, five of them, two in one image: `groups` with other labels."""
  config = groups()
  config.model.num_classes = 7
  # Colors are what it is about, so they stay.
  config.data.preprocess = (
    'decode("RGBA")|skin_tone|resize(60)|cache|random_affine(48, 0.8, 1.2)|background|normalize|'
    'keep("image", "label")'
  )
  config.evaluators.classification.image_transform = "decode|skin_tone|resize(48)|normalize"
  return config


def smoke() -> ml_collections.ConfigDict:
  """Seconds; the tests use it."""
  config = emoji()
  config.model.tower.update(dict(width=32, depth=2, num_heads=2, mlp_dim=64, unroll=2))
  config.steps = 4
  config.optim.warmup_steps = 2
  config.data.batch_size = 32
  return config


def paper(name: str) -> ml_collections.ConfigDict:
  """From scratch on ImageNet-1k as in Table 3: 300 epochs, batch 4096, Adam, dropout 0.1, wd
  0.3.
  """
  config = defaults.get_config()
  config.system = "vlx.models.vision.vit.ViT"
  config.model = dict(
    tower=dict(
      image_size=224, dropout=0.1, remat=True, dtype="bfloat16", **vit.published_size(name)
    ),
    num_classes=1000,
  )
  config.model.representation_size = config.model.tower.width
  config.data.source = "tfds:imagenet2012"
  config.data.batch_size = 4096
  config.data.preprocess = (
    'decode|random_resized_crop(224, 0.05)|flip_lr|normalize|keep("image", "label")'
  )
  config.data.image_transform = "decode|resize_small(256)|central_crop(224)|normalize"
  config.data.update(threads=32, prefetch=16)
  config.steps = 300 * 1_281_167 // 4096
  config.optim.update(dict(lr=3e-3, warmup_steps=10_000, weight_decay=0.3))
  config.mesh.update(dict(data=-1, fsdp=4))
  config.partition = defaults.TRANSFORMER_PARTITION
  config.evaluators = dict(
    classification=dict(
      type="vlx.evaluate.tasks.classification.Classification",
      splits=("validation",),
      batch_size=1024,
    )
  )
  return config


def finetune() -> ml_collections.ConfigDict:
  """A B/16 of `b16`, fine-tuned at 384 pixels (Table 4, §B.1.1): SGD with momentum, no weight decay,
  20,000 steps of 512, a new head that starts at zero, positions resampled.

  The paper takes the best of four rates, 0.003, 0.01, 0.03 and 0.06. Crops, the squashed images of
  evaluation and 500 steps of warmup are the released code's (vit_jax, input_pipeline.py, common.py).
  """
  config = paper("B/16")
  config.model.tower.update(dict(image_size=384, dropout=0.0))
  config.model.representation_size = 0
  config.init = (dict(source="runs/vit_b16", take="tower", put="tower"),)
  config.data.batch_size = 512
  config.data.preprocess = (
    'decode|random_resized_crop(384, 0.05)|flip_lr|normalize|keep("image", "label")'
  )
  config.data.image_transform = "decode|resize(384)|normalize"
  config.steps = 20_000
  config.optim.update(
    dict(name="sgd", lr=0.01, b1=0.9, warmup_steps=500, weight_decay=0.0, clip_norm=1.0)
  )
  return config


def folder() -> ml_collections.ConfigDict:
  """Your own images: --config.data.source=folder:PATH; classes are subfolders, or a `label`
  beside each file name.
  """
  config = emoji()
  size, most = 64, 1000
  config.model.tower.update(dict(image_size=size))
  config.model.num_classes = most
  config.tokenizer = dict(kind="labels", vocab_size=most, fields=("label",))
  config.data.source = "folder:."
  config.data.batch_size = 64
  config.data.image_transform = f"decode|resize_small({size})|central_crop({size})|normalize"
  config.data.preprocess = f'decode|random_resized_crop({size}, 0.5)|flip_lr|color_jitter(0.5)|normalize|label_id|keep("image", "label")'
  config.evaluators = dict(
    classification=dict(
      type="vlx.evaluate.tasks.classification.Classification", splits=("val",), ops="label_id"
    )
  )
  config.steps = 1500
  return config


VARIANTS = dict(
  smoke=smoke,
  emoji=emoji,
  emoji_cnn=emoji_cnn,
  groups=groups,
  tones=tones,
  objects=objects,
  nouns=nouns,
  folder=folder,
  paper=lambda: paper("B/16"),
  b16=lambda: paper("B/16"),
  l16=lambda: paper("L/16"),
  h14=lambda: paper("H/14"),
  finetune=finetune,
)
