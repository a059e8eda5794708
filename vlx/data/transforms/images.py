"""Images: decoding, resizing, cropping, pixels to numbers. Transparent ones have four channels
until `background`.
"""

import io

import numpy as np
from PIL import Image, ImageOps

from vlx.core.config import nearest
from vlx.core.errors import UserError
from vlx.data.records import BadRecord, evenly
from vlx.data.transforms.ops import Op, image_op, op

# A decoded image of this size takes 192 MB. A file of a few kB can claim far more.
MAX_PIXELS = 2**26
Image.init()  # else Pillow knows some formats from their first use on
# It reads more, some by programs of others (EPS by Ghostscript), and not all of these everywhere.
FORMATS = tuple(
  name
  for name in ("PNG", "JPEG", "JPEG2000", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
  if name in Image.OPEN
)


@op
def decode(mode: str = "RGB", *, of: str = "image", upright: bool = True) -> Op:
  """Encoded `image`, or each of several in the field `of` → uint8 array; "RGB" lays transparent
  images on white, "RGBA" keeps alpha.

  "any" is RGBA for transparent images, RGB for others (`opaque` makes all of them RGB).
  Of an animation the first frame. An image is turned as its EXIF says, which `upright=False` leaves
  out, as torchvision and open_clip do. Images of more than `MAX_PIXELS`, and those whose pixels have
  no known range, are bad records.
  """

  def decoded(encoded: bytes) -> np.ndarray:
    try:
      with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
          raise BadRecord(
            f"an image of {image.width}x{image.height} pixels; {MAX_PIXELS} are the most"
          )
        array = _pixels(image, mode, upright)
    except BadRecord:
      raise
    except Exception as e:  # Pillow's readers raise whatever damaged bytes make them trip over.
      raise BadRecord(f"image cannot be decoded: {type(e).__name__}: {e}") from e
    return composite(array, (255, 255, 255)) if mode == "RGB" and array.shape[-1] == 4 else array

  def apply(example, rng):
    if of not in example:
      raise BadRecord(f"no {of}")
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


def _pixels(image: Image.Image, mode: str, upright: bool) -> np.ndarray:
  """uint8 `[H, W, 4]` where there is transparency or `mode` asks for it, else `[H, W, 3]`."""
  kind = image.format
  if upright:
    image = ImageOps.exif_transpose(image)
  # Pillow would cut off at 255.
  if image.mode.startswith("I;16") or (image.mode, kind) == ("I", "PPM"):
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  elif image.mode in ("I", "F"):
    raise BadRecord(f"an image of mode {image.mode}, whose black and white are not known")
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
  if new[0] * new[1] > MAX_PIXELS:
    raise BadRecord(f"an image of {width}x{height} pixels would have {new[0]}x{new[1]}")
  return np.asarray(Image.fromarray(image).resize(new, _filter(method)))


def _check_holds(image, size) -> None:
  height, width = image.shape[:2]
  if min(height, width) < size:
    raise BadRecord(f"an image of {width}x{height} pixels, of which no square of {size} can be cut")


@image_op
def central_crop(image, rng, size, *, half="down"):
  """The middle square of `size`.

  Where a border is not whole, the upper and left are rounded down, as by Hugging Face, or half to
  "even", as by torchvision.
  """
  _check_holds(image, size)
  borders = [(length - size) / 2 for length in image.shape[:2]]
  top, left = (round(x) if half == "even" else int(x) for x in borders)
  return image[top : top + size, left : left + size]


@image_op
def random_crop(image, rng, size):
  """A square of `size`, anywhere."""
  _check_holds(image, size)
  top = rng.integers(0, image.shape[0] - size + 1)
  left = rng.integers(0, image.shape[1] - size + 1)
  return image[top : top + size, left : left + size]


@image_op
def square_crop(image, rng, spread=1.0):
  """The largest square, anywhere along the longer side, or near its middle: `spread` is the share
  of the room that it may begin in (DALL-E takes 1/4; Ramesh et al., 2021, listing 2).
  """
  height, width = image.shape[:2]
  side = min(height, width)
  top, left = (
    int(room * (0.5 + spread * (rng.random() - 0.5)) + 0.5)
    for room in (height - side, width - side)
  )
  return image[top : top + side, left : left + side]


@image_op
def random_resized_crop(image, rng, size, min_area=0.5, max_ratio=4 / 3):
  """A part of `min_area`..1 of the area and of aspect ratio 1/max_ratio..max_ratio, to a square.

  Szegedy et al., 2015 (GoogLeNet), §6, "training methodology". A part that does not fit is drawn
  again, ten times at most, as by torchvision; then it is the largest in the middle whose aspect
  ratio is allowed.
  """
  height, width = image.shape[:2]
  for _ in range(10):
    area = rng.uniform(min_area, 1.0) * height * width
    ratio = np.exp(rng.uniform(-np.log(max_ratio), np.log(max_ratio)))
    crop_width, crop_height = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
    if 0 < crop_width <= width and 0 < crop_height <= height:
      top = rng.integers(0, height - crop_height + 1)
      left = rng.integers(0, width - crop_width + 1)
      break
  else:
    crop_width = min(width, round(height * max_ratio))
    crop_height = min(height, round(width * max_ratio))
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
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
