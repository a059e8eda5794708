"""Random changes of images, and of texts, as preprocessing ops (`vlx.data.transforms.preprocess`).

Those on transparent images (RGBA) come before `background`: they know where the object ends.
"""

import math

import numpy as np
from PIL import Image

from vlx.data.datasets.scenes import sprites
from vlx.data.transforms.ops import Op, image_op, is_random, op

LUMA = np.float32([0.299, 0.587, 0.114])  # ITU-R BT.601


@image_op
def random_affine(
  image, rng, size, min_scale=0.8, max_scale=1.2, degrees=10.0, stretch=0.15, shift=0.08
):
  """RGBA to a `size` square, scaled, turned, stretched and shifted at random.

  Shrinking by much more than a half would alias: `resize` near to `size` first (before `cache`).

  Args:
    image: RGBA.
    rng: of the example.
    size: of the result, in pixels.
    min_scale: least size of the image in units of the frame.
    max_scale: greatest.
    degrees: of turning, either way.
    stretch: of the aspect ratio, as a natural logarithm, either way.
    shift: in units of the frame, either way.
  """
  height, width = image.shape[:2]
  u = rng.uniform(-1, 1, 5).tolist()
  scale = min_scale * (max_scale / min_scale) ** (0.5 + 0.5 * u[0])
  aspect = math.exp(0.5 * stretch * u[1])
  cos, sin = math.cos(math.radians(degrees * u[2])), math.sin(math.radians(degrees * u[2]))
  # From a pixel of the result to one of the source: x' = a x + b y + c, y' = d x + e y + f.
  a, b = cos * width / (scale * aspect * size), sin * width * aspect / (scale * size)
  d, e = -sin * height / (scale * aspect * size), cos * height * aspect / (scale * size)
  c = width * (0.5 + shift * u[3]) - (a + b) * size / 2
  f = height * (0.5 + shift * u[4]) - (d + e) * size / 2
  # "RGBa" is premultiplied: no color bleeds from where nothing is seen.
  source = Image.fromarray(image, "RGBA").convert("RGBa")
  moved = source.transform(
    (size, size), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
  )
  return np.asarray(moved.convert("RGBA"))


@image_op
def outline(image, rng, probability=0.3, max_width=2):
  """RGBA: a black or colored line of 1 … `max_width` pixels around what is opaque."""
  if rng.random() >= probability:
    return image
  grown = image[..., 3]
  for _ in range(rng.integers(1, max_width + 1)):
    grown = _dilate(grown)
  color = np.zeros(3) if rng.random() < 0.75 else rng.uniform(0, 255, 3)
  inside = image[..., 3:].astype(np.float32) / np.maximum(grown[..., None], 1)
  rgb = image[..., :3] * inside + color.astype(np.float32) * (1 - inside)
  return np.concatenate([rgb.astype(np.uint8), grown[..., None]], axis=-1)


def _dilate(plane: np.ndarray) -> np.ndarray:
  """The greatest value of each 3x3 neighbourhood of `[H, W]`."""
  padded = np.pad(plane, 1)
  rows = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
  return np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])


@image_op
def ink(image, rng, probability=0.2, fill=0.5):
  """Dark lines where the image changes, as a drawing has; sometimes nothing but the lines.

  Args:
    image: RGB.
    rng: of the example.
    probability: of doing so at all.
    fill: how often the colors stay; else they fade to white.
  """
  if rng.random() >= probability:
    return image
  # Luma alone does not see red beside green of the same lightness.
  value = image @ (LUMA + np.float32([0.5, 0, -0.5]))
  change = np.zeros_like(value)
  change[:, 1:] = np.abs(np.diff(value, axis=1))
  change[1:] += np.abs(np.diff(value, axis=0))
  threshold = rng.uniform(12, 40)
  line = np.clip((change - threshold) * rng.uniform(0.02, 0.05), 0, 1)[..., None]
  paper = image if rng.random() < fill else 255 - (255 - image) * np.float32(rng.uniform(0, 0.3))
  return (paper * (1 - line * np.float32(rng.uniform(0.5, 1.0)))).astype(np.uint8)


@image_op
def color_jitter(
  image, rng, probability=0.5, hue=0.05, saturation=0.5, contrast=0.3, brightness=0.15
):
  """One random linear map of the colors: hue and saturation turn and stretch chroma, in YIQ.

  Args:
    image: RGB.
    rng: of the example.
    probability: of doing so at all.
    hue: greatest turn, in turns.
    saturation: greatest change of chroma, as a natural logarithm.
    contrast: greatest change, as a natural logarithm.
    brightness: greatest shift, of 1.
  """
  if rng.random() >= probability:
    return image
  angle = 2 * np.pi * rng.uniform(-hue, hue)
  chroma = np.exp(rng.uniform(-saturation, saturation))
  turn = np.diag([1.0, chroma, chroma]) @ np.array(
    [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
  )
  matrix = _FROM_YIQ @ turn @ _TO_YIQ * np.exp(rng.uniform(-contrast, contrast))
  shift = 255 * rng.uniform(-brightness, brightness)
  changed = (image - np.float32(127.5)) @ matrix.T.astype(np.float32) + np.float32(127.5 + shift)
  return np.clip(changed, 0, 255).astype(np.uint8)


# NTSC's color space: luma, and two axes of chroma.
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


@image_op
def grayscale(image, rng, probability=0.1):
  """RGB: luma in all channels."""
  if rng.random() >= probability:
    return image
  return np.repeat((image @ LUMA)[..., None], 3, axis=-1).astype(np.uint8)


@image_op
def posterize(image, rng, probability=0.1, levels=6):
  """RGB: 3 … `levels` values per channel."""
  if rng.random() >= probability:
    return image
  step = 255 / (rng.integers(3, levels + 1) - 1)
  return (np.round(image / step) * step).astype(np.uint8)


@image_op
def random_erase(image, rng, probability=0.1, max_side=0.4):
  """RGB: a square in one color, of up to `max_side` of the side (Zhong et al., 2017)."""
  if rng.random() >= probability:
    return image
  height, width = image.shape[:2]
  side = max(1, int(min(height, width) * rng.uniform(0.1, max_side)))
  top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
  image = image.copy()
  image[top : top + side, left : left + side] = rng.integers(0, 256, 3)
  return image


@op
def add_keywords(probability=0.3, alone=0.1, most=3, field="keywords", to="caption"):
  """Puts some of the record's `keywords` behind its caption, or (`alone`) in its place."""

  def apply(example, rng):
    keywords = [k for k in example[field] if k != example[to]]
    chance = rng.random()
    if not keywords or chance >= probability + alone:
      return example
    chosen = rng.permutation(keywords)[: rng.integers(1, most + 1)].tolist()
    return {**example, to: " ".join(chosen if chance < alone else [example[to], *chosen])}

  return apply


@op
def shuffle_words(probability=0.2, field="caption"):
  """The text's words in another order."""

  def apply(example, rng):
    if rng.random() >= probability:
      return example
    return {**example, field: " ".join(rng.permutation(example[field].split()))}

  return apply


@image_op
def hide(image, rng):
  """Black: what a system makes of an image's text alone."""
  return np.zeros_like(image)


# Scenes.


@op
def cut_object(size: int, shift: float = 0.1, color: bool = True) -> Op:
  """One of a scene's objects at random: `image` is the window around it, `label` its noun and its
  color `[2]`.

  Classes are the nouns, then "as it is drawn" and the colors.

  Without randomness, the first object. Beyond the image's edge its outermost pixels go on.

  Args:
    size: of the window, in pixels of the scene.
    shift: of the window from the object's middle, in units of the window, either way.
    color: without it the label is the noun alone, a scalar.
  """

  def apply(example, rng):
    objects, image = example["objects"], example["image"]
    shown = objects[0 if not is_random(rng) else rng.integers(len(objects))]
    x1, y1, x2, y2 = shown["box"]
    moved = np.zeros(2) if not is_random(rng) else size * rng.uniform(-shift, shift, 2)
    middle = np.array([y1 + y2, x1 + x2]) / 2 * image.shape[:2] + moved
    top, left = np.round(middle - size / 2).astype(int)
    rows, columns = (
      np.clip(np.arange(first, first + size), 0, n - 1)
      for first, n in zip((top, left), image.shape)
    )
    nouns, colors = sprites.ALL_NOUNS, ("", *sprites.COLORS)
    label = np.array([nouns.index(shown["name"]), len(nouns) + colors.index(shown["color"])])
    return {
      **example,
      "image": image[rows[:, None], columns],
      "label": label if color else label[0],
    }

  return apply
