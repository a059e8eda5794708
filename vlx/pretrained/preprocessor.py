"""From Hugging Face's `preprocessor_config.json` to a preprocessing string
(`vlx.data.transforms.preprocess`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vlx.core.errors import UserError
from vlx.pretrained.fields import MAX_SIDE, shown

# Pillow's numbers.
_METHODS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
# Steps that have ops here; images are RGB in any case.
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
# What some classes do besides, when it is there.
_FOREIGN = ("crop_pct", "rescale_offset")


class _Three(NamedTuple):
  """Numbers of the three channels, of a kind."""

  least: float
  told: str

  def holds(self, value: Any) -> bool:
    return (
      isinstance(value, Sequence)
      and len(value) == 3
      and all(type(x) in (int, float) and self.least <= x <= 1e6 for x in value)
    )


MEANS, STDS = _Three(-1e6, "not three numbers"), _Three(1e-6, "not three numbers above zero")


def image_ops(config: Mapping, defaults: Mapping = {}) -> str:
  """The ops that make of an encoded image what the model takes; transparent ones lie on white,
  as there.

  Args:
    config: a file's; fields that are null are at their defaults.
    defaults: of the class that the file is for.

  Raises:
    UserError: for a step that vlx does not take, a field that is missing or absurd.
  """
  config = {**defaults, **{name: value for name, value in config.items() if value is not None}}
  for name, value in config.items():
    foreign = name in _FOREIGN or (name.startswith("do_") and name not in _STEPS)
    if foreign and value is not False:
      raise _absurd(name, value, "vlx has no such step")
  steps = [
    _resize(config) if _flag(config, "do_resize", True) else "",
    _crop(config) if _flag(config, "do_center_crop", False) else "",
    _normalize(config),
  ]
  return "|".join(["decode", *filter(None, steps)])


def _normalize(config: Mapping) -> str:
  """Pixels times `rescale_factor`, then less the mean, over the deviation; each may be left out.

  `normalize` divides by 255 itself.
  """
  factor = config.get("rescale_factor", 1 / 255) if _flag(config, "do_rescale", True) else 1
  if type(factor) not in (int, float) or not 1e-6 <= factor <= 1e6:
    raise _absurd("rescale_factor", factor, "no factor of pixels")
  mean, std = (0.0,) * 3, (1.0,) * 3
  if _flag(config, "do_normalize", True):
    mean, std = _three(config, "image_mean", MEANS), _three(config, "image_std", STDS)
  mean, std = (tuple(x / (255 * factor) for x in numbers) for numbers in (mean, std))
  return f"normalize({mean}, {std})"


def _three(config: Mapping, name: str, kind: _Three) -> Sequence[float]:
  value = config.get(name)
  if not kind.holds(value):
    raise _absurd(name, value, kind.told)
  return value


def _flag(config: Mapping, name: str, default: bool) -> bool:
  value = config.get(name, default)
  if type(value) is not bool:
    raise _absurd(name, value, "neither true nor false")
  return value


def _resize(config: Mapping) -> str:
  method, size = config.get("resample"), _size(config)
  if type(method) is not int or method not in _METHODS:
    raise _absurd("resample", method, f"vlx knows {_METHODS}")
  op = "resize_small" if len(size) == 1 else "resize"
  return f"{op}({', '.join(map(str, size))}, method={_METHODS[method]!r})"


def _size(config: Mapping) -> tuple[int, ...]:
  """The shorter side alone, or height and width.

  Older files have a number: of the shorter side where a crop follows, else of both, or as
  `default_to_square` says.
  """
  size = config.get("size")
  if type(size) is int:
    square = _flag(config, "default_to_square", not config.get("do_center_crop", False))
    size = dict(height=size, width=size) if square else {"shortest_edge": size}
  for sides in (("shortest_edge",), ("height", "width")):
    if isinstance(size, Mapping) and set(size) == set(sides):
      return tuple(_side("size", size[side]) for side in sides)
  raise _absurd("size", size, "vlx knows shortest_edge, height and width")


def _crop(config: Mapping) -> str:
  size = config.get("crop_size")
  if isinstance(size, Mapping) and set(size) == {"height", "width"}:
    height, width = (_side("crop_size", size[side]) for side in ("height", "width"))
    if height != width:
      raise _absurd("crop_size", size, "vlx crops squares")
    size = height
  if _side("crop_size", size) > min(_size(config) if config.get("do_resize", True) else (size,)):
    raise _absurd("crop_size", size, "images are smaller by then, and vlx does not pad them")
  return f"central_crop({size})"


def _side(name: str, value: Any) -> int:
  if type(value) is not int or not 0 < value <= MAX_SIDE:
    raise _absurd(name, value, f"not a positive whole number, or above {MAX_SIDE}")
  return value


def _absurd(name: str, value: Any, why: str) -> UserError:
  return UserError(f"preprocessor_config.json: {name} is {shown(value)}; {why}")
