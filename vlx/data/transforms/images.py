"""Images: decoding, resizing, cropping, pixels to numbers. Transparent ones have four channels
until `background`.
"""

import io

import numpy as np
from PIL import Image

from vlx.core.config import nearest
from vlx.core.errors import UserError
from vlx.data.records import BadRecord, evenly
from vlx.data.transforms.ops import Op, image_op, op

# A decoded image of this size takes 192 MB. A file of a few kB can claim far more.
MAX_PIXELS = 2**26


@op
def decode(mode: str = "RGB", *, of: str = "image") -> Op:
  """Encoded `image`, or each of several in the field `of` → uint8 array; "RGB" lays transparent
  images on white, "RGBA" keeps alpha.

  "any" is RGBA for transparent images, RGB for others (`opaque` makes all of them RGB).
  Of an animation the first frame. Images of more than `MAX_PIXELS` are bad records.
  """

  def decoded(encoded: bytes) -> np.ndarray:
    try:
      with Image.open(io.BytesIO(encoded)) as image:
        if image.width * image.height > MAX_PIXELS:
          raise BadRecord(
            f"an image of {image.width}x{image.height} pixels; {MAX_PIXELS} are the most"
          )
        array = _pixels(image, mode)
    except BadRecord:
      raise
    except Exception as e:  # Pillow's readers raise whatever damaged bytes make them trip over.
      raise BadRecord(f"image cannot be decoded: {type(e).__name__}: {e}") from e
    return composite(array, (255, 255, 255)) if mode == "RGB" and array.shape[-1] == 4 else array

  def apply(example, rng):
    value = example[of]
    several = isinstance(value, (list, tuple))
    return {**example, of: tuple(map(decoded, value)) if several else decoded(value)}

  return apply


@op
def stack(of: str, count: int, mask: str = "") -> Op:
  """Several images in the field `of` → one array `[count, H, W, 3]`: evenly spaced ones, or black
  ones behind.

  With a name for `mask`, bool `[count]` of those that are there.
  """

  def apply(example, rng):
    images = example[of]
    if not len(images):
      raise BadRecord(f"{of} is empty")
    chosen = images if len(images) <= count else [images[i] for i in evenly(len(images), count)]
    array = np.zeros((count, *images[0].shape), images[0].dtype)
    array[: len(chosen)] = chosen
    present = {mask: np.arange(count) < len(chosen)} if mask else {}
    return {**example, of: array, **present}

  return apply


def _pixels(image: Image.Image, mode: str) -> np.ndarray:
  """uint8 `[H, W, 4]` where there is transparency or `mode` asks for it, else `[H, W, 3]`."""
  if image.mode.startswith("I;16"):  # Pillow would cut off at 255
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  elif image.mode == "CMYK":
    image = image.convert("RGB")
  alpha = mode == "RGBA" or image.has_transparency_data
  return np.asarray(image.convert("RGBA" if alpha else "RGB"))


def composite(image: np.ndarray, color) -> np.ndarray:
  """RGBA `[H, W, 4]` on a background color (RGB, 0-255) → RGB."""
  rgba = Image.fromarray(image)
  ground = Image.new("RGB", rgba.size, tuple(int(c) for c in color))
  ground.paste(rgba, mask=rgba)
  return np.asarray(ground)


@image_op
def background(image, rng, color="random"):
  """RGBA → RGB on a color (r, g, b), or on a random one, white half of the time."""
  if color == "random":
    color = (255, 255, 255) if rng.random() < 0.5 else rng.integers(0, 256, 3)
  return composite(image, color)


def _filter(method: str) -> Image.Resampling:
  filters = {x.name.lower(): x for x in Image.Resampling}
  if method not in filters:
    raise UserError(f"no resampling {method!r}: {nearest(method, filters)}")
  return filters[method]


@image_op
def opaque(image, rng):
  """Drops alpha, as Pillow's `convert("RGB")`: transparent pixels get the color that stands
  under it.
  """
  return np.ascontiguousarray(image[..., :3])


@image_op
def resize(image, rng, height, width=None, *, method="bicubic"):
  """To height x width (square without a width), aspect ratio not kept."""
  size = (width or height, height)
  if image.shape[1::-1] == size:
    return image
  return np.asarray(Image.fromarray(image).resize(size, _filter(method)))


@image_op
def resize_small(image, rng, size, *, method="bicubic"):
  """The shorter side to `size`, aspect ratio kept; the longer side is rounded down, as by
  torchvision.
  """
  height, width = image.shape[:2]
  short = min(height, width)
  new = (int(size * width / short), int(size * height / short))
  return np.asarray(Image.fromarray(image).resize(new, _filter(method)))


@image_op
def central_crop(image, rng, size, *, half="down"):
  """The middle square of `size`.

  Where a border is not whole, the upper and left are rounded down, as by Hugging Face, or half to
  "even", as by torchvision.
  """
  borders = [(length - size) / 2 for length in image.shape[:2]]
  top, left = (round(x) if half == "even" else int(x) for x in borders)
  return image[top : top + size, left : left + size]


@image_op
def random_crop(image, rng, size):
  """A square of `size`, anywhere."""
  top = rng.integers(0, image.shape[0] - size + 1)
  left = rng.integers(0, image.shape[1] - size + 1)
  return image[top : top + size, left : left + size]


@image_op
def random_resized_crop(image, rng, size, min_area=0.5, max_ratio=4 / 3):
  """A part of `min_area`..1 of the area and of aspect ratio 1/max_ratio..max_ratio, to a square.

  Szegedy et al., 2015 (GoogLeNet), §6, "training methodology".
  """
  height, width = image.shape[:2]
  area = rng.uniform(min_area, 1.0) * height * width
  ratio = np.exp(rng.uniform(-np.log(max_ratio), np.log(max_ratio)))
  crop_width = min(width, max(1, round(np.sqrt(area * ratio))))
  crop_height = min(height, max(1, round(np.sqrt(area / ratio))))
  top = rng.integers(0, height - crop_height + 1)
  left = rng.integers(0, width - crop_width + 1)
  box = (left, top, left + crop_width, top + crop_height)
  return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box))


@image_op
def flip_lr(image, rng, probability=0.5):
  """Mirrors left to right."""
  return image[:, ::-1] if rng.random() < probability else image


@image_op
def normalize(image, rng, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)):
  """uint8 → f32, (x/255 - mean)/std: [-1, 1] by default."""
  mean, std = np.float32(mean) * 255, np.float32(std) * 255
  return (image - mean) / std
