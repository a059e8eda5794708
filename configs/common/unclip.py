"""What unCLIP's stages share."""

import ml_collections

from vlx.core.config import part_from
from vlx.train import defaults


def emoji(size: int, clip: str) -> ml_collections.ConfigDict:
  """Emoji at the size that a CLIP of configs/clip.py takes, with texts in its words."""
  config = defaults.get_config()
  told = part_from(clip)
  config.data.source = "tfds:emoji"
  config.data.image_transform = f"decode|resize({size})|normalize"
  length = told["text"]["context_length"]
  tokenize = f'tokenize("caption", {length})'
  config.data.preprocess = (
    f'decode|resize({size})|cache|normalize|{tokenize}|keep("image", "text", "text_mask")'
  )
  # The same texts give the same vocabulary.
  config.tokenizer = dict(
    vocabulary="", vocab_size=told["text"]["vocab_size"], fields=("caption", "keywords")
  )
  config.evaluators = dict(
    loss=dict(
      type="vlx.evaluate.tasks.loss.HeldOutLoss", splits=("train", "combo", "concept"), ops=tokenize
    )
  )
  return config


def of_folder(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """The same of people's own images and captions, above a run of configs/clip.py:folder in runs/clip_folder."""
  size = part_from("configs/clip.py:folder")["image"]["image_size"]
  length = part_from("configs/clip.py:folder")["text"]["context_length"]
  tokenize = f'choose("caption")|tokenize("caption", {length})'
  config.data.source = "folder:."
  config.data.image_transform = f"decode|resize_small({size})|central_crop({size})|normalize"
  config.data.preprocess = (
    f"decode|resize_small({size})|central_crop({size})|normalize|{tokenize}|"
    'keep("image", "text", "text_mask")'
  )
  config.tokenizer.fields = ("caption",)
  for evaluator in config.evaluators.values():
    evaluator.splits = ("val",)
  if "loss" in config.evaluators:
    config.evaluators.loss.ops = tokenize
  return config
