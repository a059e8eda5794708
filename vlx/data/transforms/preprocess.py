"""Preprocessing as a string of ops, read left to right.

`decode|cache|random_resized_crop(64)|normalize|tokenize("caption", 32)|keep("image", "text")`

An op is a function of its arguments that returns `apply(example, rng) -> example`; it may use `rng`
(a numpy Generator that is a function of the seed and the example's position) and must not change
the arrays it is given. Pictures are uint8 arrays `[H, W, 3 or 4]` until `normalize`. What stands
left of `cache` is done once for each record and kept in memory, so no op there may be random.
"""

import ast
import dataclasses
import inspect
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from vlx.core.config import nearest
from vlx.data.tokenizers.own import Tokenizer
from vlx.core.errors import UserError

Example = dict[str, Any]
Op = Callable[[Example, np.random.Generator], Example]
OPS: dict[str, Callable[..., Op]] = {}


# A decoded picture of this size takes 192 MB. A file of a few kB can claim far more.
MAX_PIXELS = 2**26


class BadRecord(Exception):
  """A record that cannot be used; the next readable one takes its place."""


def op(factory: Callable[..., Op]) -> Callable[..., Op]:
  """Makes `factory` an op under its own name."""
  OPS[factory.__name__] = factory
  return factory


def image_op(function: Callable[..., np.ndarray]) -> Callable[..., Op]:
  """An op from a function (image, rng, *arguments) → image."""

  def factory(*args, **kwargs) -> Op:
    return lambda example, rng: {**example, "image": function(example["image"], rng, *args, **kwargs)}

  parameters = list(inspect.signature(function).parameters.values())[2:]
  factory.__signature__ = inspect.Signature(parameters)
  factory.__name__, factory.__doc__ = function.__name__, function.__doc__
  op(factory)
  return factory


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """The two halves of a preprocessing string, around its `cache` (first half empty without one)."""

  once: tuple[Op, ...]
  each_time: tuple[Op, ...]
  cached: bool

  def prepare(self, record: Example) -> Example:
    """The ops left of `cache`."""
    return _apply(self.once, record, None)

  def finish(self, example: Example, rng: np.random.Generator) -> Example:
    """The ops right of `cache`."""
    return _apply(self.each_time, example, rng)


def _apply(ops, example, rng):
  for apply in ops:
    example = apply(example, rng)
  return example


def parse(text: str, tokenizer: Tokenizer | None = None) -> Preprocess:
  """The ops of a preprocessing string. Arguments are Python literals.

  Args:
    text: ops joined by "|".
    tokenizer: for `tokenize`.

  Raises:
    UserError: for an unknown op (with the nearest known one) or arguments that do not fit.
  """
  ops, cache_at = [], None
  for part in _split(text):
    name, args, kwargs = _parse_call(part)
    if name == "cache":
      cache_at = len(ops)
      continue
    if name not in OPS:
      raise UserError(f"no preprocessing op {name!r} in {text!r}: {nearest(name, [*OPS, 'cache'])}")
    signature = inspect.signature(OPS[name])
    if "tokenizer" in signature.parameters:
      kwargs["tokenizer"] = tokenizer
    try:
      signature.bind(*args, **kwargs)
    except TypeError as e:
      raise UserError(f"preprocessing op {part!r}: {e}; it takes {name}{signature}") from e
    ops.append(OPS[name](*args, **kwargs))
  cut = cache_at or 0
  return Preprocess(tuple(ops[:cut]), tuple(ops[cut:]), cache_at is not None)


def _split(text: str) -> list[str]:
  """Splits at the bars that stand outside of string literals."""
  parts, quote = [""], None
  for c in text:
    if quote is None and c == "|":
      parts.append("")
      continue
    if c in "\"'":
      quote = c if quote is None else None if c == quote else quote
    parts[-1] += c
  return [p.strip() for p in parts]


def _parse_call(text: str) -> tuple[str, list, dict]:
  try:
    node = ast.parse(text, mode="eval").body
    if isinstance(node, ast.Name):
      return node.id, [], {}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
      args = [ast.literal_eval(a) for a in node.args]
      return node.func.id, args, {k.arg: ast.literal_eval(k.value) for k in node.keywords}
  except (SyntaxError, ValueError):
    pass
  raise UserError(f"cannot read the preprocessing op {text!r}; ops look like resize(64)")


# Pictures.


@op
def decode(mode: str = "RGB") -> Op:
  """Encoded `image` → uint8 array; "RGB" lays transparent pictures on white, "RGBA" keeps alpha.

  "any" is RGBA for transparent pictures, RGB for others (`opaque` makes all of them RGB).
  Of an animation the first frame. Pictures of more than `MAX_PIXELS` are bad records.
  """

  def apply(example, rng):
    try:
      with Image.open(io.BytesIO(example["image"])) as image:
        if image.width * image.height > MAX_PIXELS:
          raise BadRecord(f"a picture of {image.width}x{image.height} pixels; {MAX_PIXELS} are the most")
        array = _pixels(image, mode)
    except BadRecord:
      raise
    except Exception as e:  # Pillow's readers raise whatever damaged bytes make them trip over.
      raise BadRecord(f"picture cannot be decoded: {type(e).__name__}: {e}") from e
    if mode == "RGB" and array.shape[-1] == 4:
      array = composite(array, (255, 255, 255))
    return {**example, "image": array}

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
  picture = Image.fromarray(image)
  ground = Image.new("RGB", picture.size, tuple(int(c) for c in color))
  ground.paste(picture, mask=picture)
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
  """Drops alpha, as Pillow's `convert("RGB")`: transparent pixels get the color that stands under it."""
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
  """The shorter side to `size`, aspect ratio kept; the longer side is rounded down, as by torchvision."""
  height, width = image.shape[:2]
  short = min(height, width)
  new = (int(size * width / short), int(size * height / short))
  return np.asarray(Image.fromarray(image).resize(new, _filter(method)))


@image_op
def central_crop(image, rng, size, *, half="down"):
  """The middle square of `size`.

  Where a border is not whole, the upper and left are rounded down, as by Hugging Face, or half to "even", as
  by torchvision.
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


# Texts.


@op
def choose(field: str = "caption") -> Op:
  """One of the field's texts at random, where it has many."""

  def apply(example, rng):
    texts = example[field]
    if isinstance(texts, str):
      return example
    return {**example, field: texts[rng.integers(len(texts))]}

  return apply


@op
def template(*templates: str, field: str = "caption") -> Op:
  """Puts the text into one of the templates, "{}" standing for it."""

  def apply(example, rng):
    return {**example, field: templates[rng.integers(len(templates))].format(example[field])}

  return apply


@op
def tokenize(field: str, length: int, tokenizer: Tokenizer, dropout: float = 0.0) -> Op:
  """The text in `field` → `text` ids i32 `[length]` and `text_mask` bool `[length]`.

  A record whose text is empty is a bad one. `dropout` is BPE's, of merges.
  """

  def apply(example, rng):
    if not example[field].strip():
      raise BadRecord(f"{field} is empty")
    ids, mask = tokenizer.encode(example[field], length, dropout, rng)
    return {**example, "text": ids, "text_mask": mask}

  return apply


# Records.


@op
def skin_tone() -> Op:
  """`label` of an emoji by its `sequence`: 0 without a skin tone, 1 to 5 from light to dark, 6 with two of them."""
  from vlx.data.datasets import emoji  # which imports tensorflow_datasets, and that takes a second

  def apply(example, rng):
    tones = set(emoji.tones_of(example["sequence"]))
    if len(tones) > 1:
      return {**example, "label": 6}
    return {**example, "label": 1 + emoji.TONES.index(*tones) if tones else 0}

  return apply


@op
def keep(*names: str) -> Op:
  """Drops every other field."""

  def apply(example: Mapping, rng):
    if missing := [n for n in names if n not in example]:
      raise UserError(
          f"preprocessing keeps {', '.join(missing)}, but the record has only {', '.join(example)}"
      )
    return {n: example[n] for n in names}

  return apply
