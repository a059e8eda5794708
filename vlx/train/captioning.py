"""What the configs of captioners start from: data, words, evaluation, a small tower."""

import ml_collections

from vlx.train import defaults

# Two layers of attention above a convolutional stem: what learns in minutes on a CPU.
SMALL_ENCODER = dict(
    patch_size=8, stem=(32, 64, 128), width=128, depth=2, num_heads=4, mlp_dim=512, pool="mean",
    activation="gelu_tanh", initialization="clip", unroll=2,
)
IMAGENET = "normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))"  # of torchvision's weights
FREEZE = ((r"encoder/.*", None), (".*", {}))  # optimizer rules


def _captioning(
    source: str, picture: str, augment: str, vocab_size: int, min_count: int, text_length: int
) -> ml_collections.ConfigDict:
  config = defaults.get_config()
  config.data.source = source
  config.data.picture = picture
  config.data.preprocess = (
      f'{augment}|choose("caption")|tokenize("caption", {text_length})|keep("image", "text", "text_mask")'
  )
  config.tokenizer = dict(kind="words", vocab_size=vocab_size, min_count=min_count, fields=("caption",))
  return config


def emoji(size: int) -> ml_collections.ConfigDict:
  """Names of emoji; evaluated on tones never seen with them, and in another hand."""
  return _captioning(
      "tfds:emoji", f"decode|resize({size})|normalize",
      f'decode("RGBA")|resize({size * 5 // 4})|cache|random_affine({size}, 0.85, 1.15, 8)|background|'
      'color_jitter(0.3)|normalize',
      vocab_size=3000, min_count=1, text_length=16,
  )


def scenes(size: int) -> ml_collections.ConfigDict:
  """Scenes; evaluated on others of the same kind, on combinations and on nouns never seen."""
  return _captioning(
      f"scenes:20000?size={size}", f"decode|resize({size})|normalize", "decode|cache|normalize",
      vocab_size=480, min_count=5, text_length=32,
  )


def photographs(source: str, vocab_size: int, min_count: int, crop: str) -> ml_collections.ConfigDict:
  """COCO or Flickr in the sizes of ImageNet's towers; `crop` is what training makes of 256 pixels."""
  config = _captioning(
      source, f"decode|resize_small(256)|central_crop(224)|{IMAGENET}",
      f"decode|resize_small(256)|{crop}|{IMAGENET}", vocab_size, min_count, text_length=32,
  )
  config.data.update(dict(threads=16, ahead=16))
  return config
