"""From Hugging Face's `preprocessor_config.json` to a preprocessing string (`vlx.data.preprocess`)."""

from collections.abc import Mapping

from vlx.errors import UserError

# Pillow's numbers.
_METHODS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def picture_ops(config: Mapping) -> str:
  """The ops that make of an encoded picture what the model takes.

  Older files have one number for `size` (the shorter side where a crop follows, else both) and `crop_size`.
  """
  ops = ["decode"]  # Hugging Face lays transparent pictures on white too
  cropped = config.get("do_center_crop", False)
  if config.get("do_resize", True):
    size = config.get("size")
    if type(size) is int:
      size = {"shortest_edge": size} if cropped else {"height": size, "width": size}
    method = _METHODS.get(config.get("resample"))
    if method is None:
      raise UserError(f"preprocessor_config.json: resample is {config.get('resample')!r}, not one of {_METHODS}")
    if set(size or ()) == {"shortest_edge"}:
      ops.append(f"resize_small({_whole('size', size['shortest_edge'])}, method={method!r})")
    elif set(size or ()) == {"height", "width"}:
      ops.append(f"resize({_whole('size', size['height'])}, {_whole('size', size['width'])}, method={method!r})")
    else:
      raise UserError(f"preprocessor_config.json: size is {size!r}; vlx knows shortest_edge, height and width")
  if cropped:
    crop = config.get("crop_size")
    sides = {crop} if type(crop) is int else set((crop or {}).values())
    if len(sides) != 1:
      raise UserError(f"preprocessor_config.json: crop_size is {crop!r}; vlx crops squares")
    ops.append(f"central_crop({_whole('crop_size', sides.pop())})")
  mean, std = (_three(config, name) for name in ("image_mean", "image_std"))
  return "|".join([*ops, f"normalize({mean}, {std})"])


def _whole(name, value) -> int:
  if type(value) is not int or value < 1:
    raise UserError(f"preprocessor_config.json: {name} holds {value!r}, not a positive whole number")
  return value


def _three(config, name) -> tuple[float, ...]:
  value = config.get(name)
  if not isinstance(value, list) or len(value) != 3 or not all(type(x) in (int, float) for x in value):
    raise UserError(f"preprocessor_config.json: {name} is {value!r}, not three numbers")
  return tuple(value)
