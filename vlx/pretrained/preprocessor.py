"""From Hugging Face's `preprocessor_config.json` to a preprocessing string
(`vlx.data.transforms.preprocess`).
"""

from collections.abc import Mapping
from typing import Any

from vlx.core.errors import UserError

# Pillow's numbers.
_METHODS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def image_ops(config: Mapping) -> str:
  """The ops that make of an encoded image what the model takes; transparent ones lie on white,
  as there.
  """
  ops = ["decode"]
  if config.get("do_resize", True):
    ops.append(_resize(config))
  if config.get("do_center_crop", False):
    ops.append(_crop(config.get("crop_size")))
  mean, std = (_three(config, name) for name in ("image_mean", "image_std"))
  return "|".join([*ops, f"normalize({mean}, {std})"])


def _resize(config: Mapping) -> str:
  """Older files have a number for `size`: of the shorter side where a crop follows, else of
  both.
  """
  size, method = config.get("size"), config.get("resample")
  if method not in _METHODS:
    raise _absurd("resample", method, f"vlx knows {_METHODS}")
  method = _METHODS[method]
  if type(size) is int:
    size = (
      {"shortest_edge": size}
      if config.get("do_center_crop", False)
      else dict(height=size, width=size)
    )
  if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
    return f"resize_small({_whole('size', size['shortest_edge'])}, method={method!r})"
  if isinstance(size, Mapping) and set(size) == {"height", "width"}:
    height, width = (_whole("size", size[side]) for side in ("height", "width"))
    return f"resize({height}, {width}, method={method!r})"
  raise _absurd("size", size, "vlx knows shortest_edge, height and width")


def _crop(size: Any) -> str:
  sides = set(size.values()) if isinstance(size, Mapping) else {size}
  if len(sides) != 1:
    raise _absurd("crop_size", size, "vlx crops squares")
  return f"central_crop({_whole('crop_size', sides.pop())})"


def _whole(name: str, value: Any) -> int:
  if type(value) is not int or value < 1:
    raise _absurd(name, value, "not a positive whole number")
  return value


def _three(config: Mapping, name: str) -> tuple[float, ...]:
  value = config.get(name)
  if (
    not isinstance(value, list)
    or len(value) != 3
    or not all(type(x) in (int, float) for x in value)
  ):
    raise _absurd(name, value, "not three numbers")
  return tuple(value)


def _absurd(name: str, value: Any, why: str) -> UserError:
  return UserError(f"preprocessor_config.json: {name} is {value!r}; {why}")
