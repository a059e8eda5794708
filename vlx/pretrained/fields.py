"""Fields of a model from a `config.json` or the shapes in a file; what is missing or absurd is told
by its name.
"""

import re
import reprlib
from collections.abc import Mapping
from typing import Any

from vlx.core.errors import UserError

# Far more than any model has. A network of more than that could neither be described nor told to be
# wrong: each layer has its own line in what does not fit.
MAX_SIZE, MAX_LAYERS, MAX_STAGES, MAX_SIDE = 2**31 - 1, 1000, 8, 1 << 14
# Of a network that rotates positions: the angles, half as many, are made before anything is traced.
MAX_WIDTH = 1 << 20
# Attention's schedule is made before anything runs, and grows with the square of it.
MAX_LENGTH = 1 << 18
_SMALL, _LARGE = 1e-30, 1e30  # f32 holds them

# Three functions go by the name GELU (vlx.models.layers.transformer); public names → vlx's.
ACTIVATIONS = {
  "gelu": "gelu",
  "quick_gelu": "quick_gelu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
}


def public_activation(name: str) -> str:
  return next(public for public, ours in ACTIVATIONS.items() if ours == name)


def shown(value: Any) -> str:
  """A value in a message: of nested and long ones the beginning."""
  try:
    return _SHORT.repr(value)
  except ValueError:  # Python does not write such numbers
    return "a number of thousands of digits"


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 3, 8, 8, 8
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 200, 200, 100


def _of(config: Mapping, name: str, default: Any) -> Any:
  value = config.get(name, default)
  if value is None:
    raise UserError(f"config.json has no {name}")
  return value


def positive_int(
  config: Mapping, name: str, default: int | None = None, most: int = MAX_SIZE
) -> int:
  """A positive whole number."""
  return checked_int(name, _of(config, name, default), most)


def layers(config: Mapping, name: str, default: int | None = None) -> int:
  """How many layers there are."""
  return positive_int(config, name, default, MAX_LAYERS)


def length(config: Mapping, name: str, default: int | None = None) -> int:
  """How long a text may be."""
  return positive_int(config, name, default, MAX_LENGTH)


def patches(config: Mapping, image_size: str, patch_size: str, *defaults: int) -> tuple[int, int]:
  """The side of an image, and of its patches, which divide it."""
  names = (image_size, patch_size)
  side, patch = (
    positive_int(config, name, *default, most=MAX_SIDE)
    for name, default in zip(names, ((x,) for x in defaults) if defaults else ((), ()))
  )
  divides(image_size, side, patch_size, patch)
  checked_int("the number of patches", (side // patch) ** 2, MAX_LENGTH)
  return side, patch


def checked_int(name: str, value: Any, most: int = MAX_SIZE) -> int:
  if type(value) is not int or value < 1:
    raise UserError(f"config.json: {name} is {shown(value)}, not a positive whole number")
  if value > most:
    raise UserError(f"config.json: {name} is {shown(value)}; vlx takes up to {most}")
  return value


def epsilon(config: Mapping, name: str, default: float | None = None) -> float:
  """What stands under a root beside a variance."""
  return positive(config, name, default, most=1.0)


def positive(
  config: Mapping, name: str, default: float | None = None, most: float = _LARGE
) -> float:
  value = _of(config, name, default)
  if type(value) not in (int, float) or not _SMALL <= value <= most:
    raise UserError(f"config.json: {name} is {shown(value)}, not a positive number that vlx takes")
  return float(value)


def flag(config: Mapping, name: str, default: bool) -> bool:
  value = _of(config, name, default)
  if type(value) is not bool:
    raise UserError(f"config.json: {name} is {shown(value)}, neither true nor false")
  return value


def one_of(
  config: Mapping, name: str, meanings: Mapping[str, Any], default: str | None = None
) -> Any:
  """The meaning of a word in a config."""
  value = _of(config, name, default)
  if not isinstance(value, str) or value not in meanings:
    raise UserError(
      f"config.json: {name} is {shown(value)}; vlx knows {', '.join(map(repr, meanings))}"
    )
  return meanings[value]


def one_of_numbers(config: Mapping, name: str, meanings: Mapping[int, Any], default: int) -> Any:
  """The meaning of a number in a config."""
  value = _of(config, name, default)
  if type(value) is not int or value not in meanings:
    raise UserError(
      f"config.json: {name} is {shown(value)}; vlx knows {', '.join(map(str, meanings))}"
    )
  return meanings[value]


def must_be(config: Mapping, name: str, wanted: Any) -> None:
  """For a field that a file may leave out, and that vlx takes at one value only."""
  if (value := config.get(name, wanted)) != wanted:
    raise UserError(f"config.json: {name} is {shown(value)}; vlx supports {wanted!r} only")


def section(config: Mapping, name: str) -> Mapping:
  """The object under a name, empty where there is none."""
  value = config.get(name)
  if value is not None and not isinstance(value, Mapping):
    raise UserError(f"config.json: {name} is {shown(value)}, not an object")
  return value or {}


def divides(name: str, number: int, into: str, parts: int) -> None:
  if number % parts:
    raise UserError(f"{name} {number} does not divide by {into} {parts}")


def exportable(what: str, module: Any, **wanted: Any) -> None:
  """A model to export must have these fields at these values: the public format has no place for
  others.
  """
  for name, value in wanted.items():
    if (found := getattr(module, name)) != value:
      raise UserError(f"{what} needs {name} to be {value!r}, not {found!r}")


def shape(shapes: Mapping[str, tuple[int, ...]], name: str, axes: int) -> tuple[int, ...]:
  """The shape of a tensor that a file must have."""
  if name not in shapes:
    raise UserError(f"the checkpoint has no {name}")
  if len(shapes[name]) != axes:
    raise UserError(f"{name} has the shape {list(shapes[name])}; it should have {axes} axes")
  if not all(0 < size <= MAX_SIZE for size in shapes[name]):
    raise UserError(f"{name} has the shape {list(shapes[name])}, which is no model's")
  return tuple(shapes[name])


def count(
  shapes: Mapping[str, tuple[int, ...]], pattern: str, least: int = 1, most: int = MAX_LAYERS
) -> int:
  """How many different numbers stand in the pattern's group, over all names."""
  found = len({match[1] for name in shapes if (match := re.match(pattern, name))})
  if not least <= found <= most:
    raise UserError(
      f"the checkpoint has {found} layers whose names are {pattern}; vlx takes {least} to {most}"
    )
  return found


def positions(shapes: Mapping[str, tuple[int, ...]], name: str, axes: int) -> int:
  """How many positions a table has, on its axis before the last."""
  return checked_int(
    f"the number of positions in {name}", shape(shapes, name, axes)[-2], MAX_LENGTH
  )
