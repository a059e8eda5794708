"""Fields of a model from a `config.json` or the shapes in a file; what is missing or absurd is told
by its name.
"""

import re
from collections.abc import Mapping
from typing import Any

from vlx.core.errors import UserError

# Three functions go by the name GELU (vlx.models.layers.transformer); public names → vlx's.
ACTIVATIONS = {
  "gelu": "gelu",
  "quick_gelu": "quick_gelu",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu_new": "gelu_tanh",
}


def public_activation(name: str) -> str:
  return next(public for public, ours in ACTIVATIONS.items() if ours == name)


def _of(config: Mapping, name: str, default: Any) -> Any:
  value = config.get(name, default)
  if value is None:
    raise UserError(f"config.json has no {name}")
  return value


def positive_int(config: Mapping, name: str, default: int | None = None) -> int:
  """A positive whole number."""
  value = _of(config, name, default)
  if type(value) is not int or value < 1:
    raise UserError(f"config.json: {name} is {value!r}, not a positive whole number")
  return value


def positive(config: Mapping, name: str, default: float | None = None) -> float:
  value = _of(config, name, default)
  if type(value) not in (int, float) or not 0 < value < float("inf"):
    raise UserError(f"config.json: {name} is {value!r}, not a positive number")
  return float(value)


def one_of(
  config: Mapping, name: str, meanings: Mapping[str, Any], default: str | None = None
) -> Any:
  """The meaning of a word in a config."""
  value = _of(config, name, default)
  if not isinstance(value, str) or value not in meanings:
    raise UserError(f"config.json: {name} is {value!r}; vlx knows {', '.join(map(repr, meanings))}")
  return meanings[value]


def must_be(config: Mapping, name: str, wanted: Any) -> None:
  """For a field that a file may leave out, and that vlx takes at one value only."""
  if (value := config.get(name, wanted)) != wanted:
    raise UserError(f"config.json: {name} is {value!r}; vlx supports {wanted!r} only")


def section(config: Mapping, name: str) -> Mapping:
  """The object under a name, empty where there is none."""
  value = config.get(name)
  if value is not None and not isinstance(value, Mapping):
    raise UserError(f"config.json: {name} is {value!r}, not an object")
  return value or {}


def divides(config: Mapping, name: str, number: int, into: str, parts: int) -> None:
  if number % parts:
    raise UserError(f"config.json: {name} {number} does not divide by {into} {parts}")


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
  return tuple(shapes[name])


def count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
  """How many different numbers stand in the pattern's group, over all names."""
  return len({match[1] for name in shapes if (match := re.match(pattern, name))})
