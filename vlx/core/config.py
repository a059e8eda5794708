"""From a config to the objects it names.

A config says *what* by import path ("vlx.models.contrastive.clip.CLIP") and *how* by the fields of
that dataclass. There is no registry: whatever Python can import, a config can name.
"""

import dataclasses
import difflib
import importlib
import json
import pathlib
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections

from vlx.core.errors import UserError
from vlx.core.system import System


def import_path(path: str) -> Any:
  """The object at a dotted path, e.g. a class of a module."""
  module, _, name = path.rpartition(".")
  try:
    return getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError, ValueError) as e:
    raise UserError(f"the config names {path!r}, which cannot be imported: {e}") from e


def nearest(name: str, valid) -> str:
  """", did you mean 'x'?" for the closest of the valid names, or a list of them all."""
  close = difflib.get_close_matches(name, list(valid), n=1)
  return f"did you mean {close[0]!r}?" if close else f"valid names: {', '.join(sorted(valid))}"


def choose(variants: Mapping[str, Any], name: str) -> Any:
  """What a config's variants have under `name`; an unknown name is the user's error."""
  if name not in variants:
    raise UserError(f"no variant {name!r}: {nearest(name, variants)}")
  return variants[name]


def build(cls: type, section: Mapping[str, Any], where: str) -> Any:
  """An instance of a dataclass from a config section with its fields' names.

  A field that is itself a dataclass (a Linen module is one) is built from its nested section; of a union of
  dataclasses, the one whose required fields are there; one that is a system, from the config of the run (or
  the config file) that its value names. Lists become tuples, so that what is built can be hashed.

  Args:
    cls: a dataclass.
    section: field name → value.
    where: the section's dotted name, for messages.

  Raises:
    UserError: for names that `cls` has not, with the nearest valid one, and for missing fields.
  """
  fields = _fields(cls)
  for name in section:
    if name not in fields:
      raise UserError(f"{cls.__name__} has no field {where}.{name}: {nearest(name, fields)}")
  if missing := sorted(_required(cls) - set(section)):
    raise UserError(f"{cls.__name__} needs {', '.join(f'{where}.{m}' for m in missing)}")
  hints = typing.get_type_hints(cls)
  arguments = {}
  for name, value in section.items():
    if _is_system(hints[name]):
      value = build_system(_config_of(value, f"{where}.{name}"))
    elif (kind := _dataclass_of(hints[name], value)) is not None:
      value = build(kind, value, f"{where}.{name}")
    arguments[name] = tuple(value) if isinstance(value, list) else value
  try:
    return cls(**arguments)
  except ValueError as e:
    raise UserError(f"{where}: {e}") from e


def section_of(instance: Any) -> dict[str, Any]:
  """The config section that `build` makes the instance of a dataclass from."""
  section = {}
  for field in dataclasses.fields(instance):
    if field.init and field.name not in ("parent", "name"):
      value = getattr(instance, field.name)
      section[field.name] = section_of(value) if dataclasses.is_dataclass(value) else value
  return section


def _is_system(kind: Any) -> bool:
  return System in getattr(kind, "__mro__", ())


def _config_of(place: str, where: str) -> ml_collections.ConfigDict:
  """The config of a run's folder, or of "FILE:VARIANT"."""
  from vlx.cli import load_config  # which imports this module

  if ".py" in place:
    return load_config(place)
  path = pathlib.Path(place) / "config.json"
  if not path.is_file():
    raise UserError(f"{where}: {place} holds no run: there is no config.json")
  return from_json(path.read_text())


def parts(config: ml_collections.ConfigDict) -> dict[str, str]:
  """The fields of the system that are systems of their own → the runs or configs that they name."""
  hints = typing.get_type_hints(import_path(config.system))
  return {name: place for name, place in config.model.items() if _is_system(hints[name])}


def with_defaults(cls: type, section: Mapping[str, Any]) -> dict[str, Any]:
  """The section with the default of every field of `cls` that it leaves out, nested ones too."""
  hints = typing.get_type_hints(cls)
  complete = dict(section)
  for name, field in _fields(cls).items():
    if (kind := _dataclass_of(hints[name], complete.get(name))) is not None:
      complete[name] = with_defaults(kind, complete[name])
    elif field.default is not dataclasses.MISSING:
      complete.setdefault(name, field.default)
  return complete


def _fields(cls: type) -> dict[str, dataclasses.Field]:
  # `parent` and `name` are Linen's own.
  return {f.name: f for f in dataclasses.fields(cls) if f.init and f.name not in ("parent", "name")}


def _required(cls: type) -> set[str]:
  return {
      n for n, f in _fields(cls).items()
      if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
  }


def _dataclass_of(hint: Any, value: Any) -> type | None:
  """The dataclass to build from a field's value, None where the value is not the section of one."""
  if not isinstance(value, Mapping):
    return None
  members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
  kinds = [m for m in members if dataclasses.is_dataclass(m)]
  return next((k for k in kinds if _required(k) <= set(value)), kinds[0] if kinds else None)


def finish(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Writes out the model's defaults, so that each can be set and each is kept with a run; locks."""
  config.model = with_defaults(import_path(config.system), config.model.to_dict())
  return config.lock()


def build_system(config: ml_collections.ConfigDict):
  """The system that `config.system` names, with the fields of `config.model`."""
  return build(import_path(config.system), config.model.to_dict(), "model")


def to_json(config: ml_collections.ConfigDict) -> str:
  return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(json.loads(text)).lock()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> list[str]:
  """Lines "name: old → new" for every value in which two configs differ."""
  lines = []
  for name in sorted({*old, *new}):
    a, b = old.get(name, "nothing"), new.get(name, "nothing")
    if isinstance(a, Mapping) and isinstance(b, Mapping):
      lines += differences(a, b, f"{where}{name}.")
    elif a != b:
      lines.append(f"{where}{name}: {a} → {b}")
  return lines
