"""From a config to the objects it names.

A config says *what* by import path ("vlx.models.contrastive.clip.CLIP") and *how* by the fields of
that dataclass. There is no registry: whatever Python can import, a config can name.
"""

import collections.abc
import dataclasses
import difflib
import importlib
import importlib.util
import json
import pathlib
import types
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import flax.linen as nn

from vlx.core import capabilities, files, schema1, trust
from vlx.core.errors import UserError
from vlx.core.system import System

if TYPE_CHECKING:

  class ConfigDict(Any):  # by its own stubs each field may be of any kind
    ...
else:
  from ml_collections import ConfigDict

SCHEMA = 2  # of config.json
_PLAIN = {bool, int, float, str, types.NoneType}
# Of a model's whole numbers: widths, lengths, words. Shapes of more take gigabytes, though no array
# is made.
_LARGEST = 2**22
# Of those that count layers, each of which is traced, and of those whose square is masked.
_LARGEST_OF = {
  **dict.fromkeys(
    ("depth", "num_blocks", "blocks_per_group", "stage_sizes", "convolutions", "init_layers"), 1000
  ),
  **dict.fromkeys(("annotation_layers", "unroll"), 1000),
  **dict.fromkeys(("context_length", "text_length", "train_length"), 2**18),
  "image_size": 2**12,
}


def import_path(path: str) -> Any:
  """The object at a dotted path, e.g. a class of a module."""
  module, _, name = path.rpartition(".")
  try:
    return getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError, ValueError) as e:
    raise UserError(f"the config names {path!r}, which cannot be imported: {e}") from e


def nearest(name: str, valid) -> str:
  """A question, "did you mean 'x'?", for the closest valid name, or a list of them all."""
  close = difflib.get_close_matches(name, list(valid), n=1)
  return f"did you mean {close[0]!r}?" if close else f"valid names: {', '.join(sorted(valid))}"


def select_variant(variants: Mapping[str, Any], name: str) -> Any:
  """The entry of a config's variants under `name`; an unknown name is the user's error."""
  if name not in variants:
    raise UserError(f"no variant {name!r}: {nearest(name, variants)}")
  return variants[name]


def is_part(value: Any) -> bool:
  """Whether a section is a system inside another: it names its class, or where it comes from."""
  return isinstance(value, Mapping) and bool({"system", "source"} & set(value))


def build(cls: type, section: Mapping[str, Any], where: str) -> Any:
  """An instance of a dataclass from a config section with its fields' names.

  A field that is itself a dataclass (a Linen module is one) is built from its nested section; of a
  union of dataclasses, the one that has the section's fields. A part (`is_part`) becomes the system
  that it names, and the field's annotation, a capability or None beside one, says what it must be
  able to do. Lists become tuples, so that what is built can be hashed.

  Args:
    cls: a dataclass.
    section: field name → value; parts are resolved (`vlx.train.initialize.resolve`).
    where: the section's dotted name, for messages.

  Raises:
    UserError: for names that `cls` has not, with the nearest valid one, for missing fields, and for
      a part that cannot do what it is there for.
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
    if is_part(value):
      value = _build_part(value, hints[name], f"{where}.{name}")
    elif kinds := _dataclasses(hints[name]):
      if isinstance(value, Mapping):
        value = build(_choose(kinds, value), value, f"{where}.{name}")
      elif value is not None and not isinstance(value, tuple(kinds)):
        raise UserError(f"{where}.{name} is {value!r}, not fields of a {kinds[0].__name__}")
    elif _protocols(hints[name]) and value is not None:
      raise UserError(
        f"{where}.{name} must be a system, dict(source=PATH) or dict(system=…, …), not {value!r}"
      )
    _check_plain(value, hints[name], f"{where}.{name}")
    arguments[name] = tuple(value) if isinstance(value, list) else value
  try:
    return cls(**arguments)
  except ValueError as e:
    raise UserError(f"{where}: {e}") from e


def _check_plain(value: Any, hint: Any, where: str) -> None:
  """A field that is annotated as numbers, texts or lists of them must be that."""
  listed = typing.get_origin(hint) in (tuple, collections.abc.Sequence)
  members = typing.get_args(hint) if listed else _members(hint)
  kinds = {kind for kind in members if kind is not Ellipsis}
  if not kinds or not kinds <= _PLAIN:
    return
  kinds |= {int} if float in kinds else set()
  right = not listed or isinstance(value, (list, tuple))
  if right and all(type(x) in kinds and x == x for x in (value if listed else (value,))):
    return
  names = " or ".join(sorted(kind.__name__ for kind in kinds))
  raise UserError(f"{where} is {value!r}, not {'a list of ' if listed else ''}{names}")


def _build_part(section: Mapping[str, Any], hint: Any, where: str) -> Any:
  fields = {k: v for k, v in section.items() if k not in ("system", "source")}
  if "system" not in section:
    raise ValueError(f"{where}: cannot tell which system {section['source']} holds")
  system = build(import_path(section["system"]), fields, where)
  if wanted := _protocols(hint):
    capabilities.require(system, *wanted, what=where)
  return system


def section_of(instance: Any) -> dict[str, Any]:
  """The config section that `build` makes the instance of a dataclass from."""
  section = {}
  for field in dataclasses.fields(instance):
    if field.init and field.name not in ("parent", "name"):
      value = getattr(instance, field.name)
      if dataclasses.is_dataclass(value):
        value = part_of(value) if _is_system(value) else section_of(value)
      section[field.name] = value
  return section


def part_of(system: System) -> dict[str, Any]:
  """The section of a system as a part: its class and its fields."""
  kind = type(system)
  return {"system": f"{kind.__module__}.{kind.__qualname__}", **section_of(system)}


def _is_system(value: Any) -> TypeGuard[System]:
  return isinstance(value, System) and not isinstance(value, nn.Module)


def with_defaults(cls: type, section: Mapping[str, Any]) -> dict[str, Any]:
  """The section with the default of every field of `cls` that it leaves out, nested ones too."""
  hints = typing.get_type_hints(cls)
  complete = dict(section)
  for name, field in _fields(cls).items():
    value: Any = complete.get(name)
    if is_part(value):
      if "system" in value:
        fields = {k: v for k, v in value.items() if k not in ("system", "source")}
        complete[name] = {**value, **with_defaults(import_path(value["system"]), fields)}
    elif isinstance(value, Mapping) and (kinds := _dataclasses(hints[name])):
      complete[name] = with_defaults(_choose(kinds, value), value)
    elif field.default is not dataclasses.MISSING:
      default = field.default
      complete.setdefault(
        name, section_of(default) if dataclasses.is_dataclass(default) else default
      )
  return complete


def _fields(cls: type) -> dict[str, dataclasses.Field]:
  # `parent` and `name` are Linen's own.
  return {f.name: f for f in dataclasses.fields(cls) if f.init and f.name not in ("parent", "name")}


def _required(cls: type) -> set[str]:
  return {
    n
    for n, f in _fields(cls).items()
    if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
  }


def _members(hint: Any) -> tuple[Any, ...]:
  """A union's, or the one type."""
  union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
  return typing.get_args(hint) if union else (hint,)


def _dataclasses(hint: Any) -> list[type]:
  return [m for m in _members(hint) if isinstance(m, type) and dataclasses.is_dataclass(m)]


def _protocols(hint: Any) -> list[type]:
  return [m for m in _members(hint) if getattr(m, "_is_protocol", False)]


def _choose(kinds: list[type], section: Mapping[str, Any]) -> type:
  """The dataclass that has all of the section's fields and misses none that it needs.

  Where a name is mistyped none does: then the one with most of the names, whose `build` says what
  is wrong.
  """
  fits = [k for k in kinds if _required(k) <= set(section) <= set(_fields(k))]
  return fits[0] if fits else max(kinds, key=lambda k: len(set(section) & set(_fields(k))))


def finalize(config: ConfigDict) -> ConfigDict:
  """Writes out the defaults of the model and the evaluators, so that each can be set and is kept
  with a run; locks.
  """
  config.model = with_defaults(import_path(config.system), config.model.to_dict())
  for name, section in config.get("evaluators", {}).items():
    if "type" in section:
      config.evaluators[name] = with_defaults(import_path(section["type"]), section.to_dict())
  return config.lock()


def build_system(config: ConfigDict) -> System:
  """The system that `config.system` names, with the fields of `config.model`, whose parts are
  resolved.
  """
  section = config.model.to_dict()
  _check_sizes(section, "model")
  return build(import_path(config.system), section, "model")


def _check_sizes(value: Any, where: str) -> None:
  if isinstance(value, dict):
    side, patch = value.get("image_size", 0), value.get("patch_size", 0)
    sizes = isinstance(side, int) and isinstance(patch, int) and patch > 0
    if sizes and side**2 > patch**2 * _LARGEST_OF["context_length"]:
      raise UserError(f"{where}: an image of {side} has too many patches of {patch}")
  if isinstance(value, (dict, list, tuple)):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, inner in items:
      _check_sizes(inner, f"{where}.{name}")
  elif type(value) is int:
    name = next((n for n in reversed(where.split(".")) if not n.isdigit()), "")
    if abs(value) > (most := _LARGEST_OF.get(name, _LARGEST)):
      raise UserError(f"{where} is {value}; {most} is the most")


def find_file(path: str) -> pathlib.Path:
  """The file here or beside the package, so that "configs/clip.py" is found from any folder.

  Raises:
    UserError: where there is no such file.
  """
  for found in (pathlib.Path(path), pathlib.Path(__file__).parents[2] / path):
    if found.is_file():
      return found
  raise UserError(f"no file {path}")


def find_config(path: str) -> str:
  """FILE:VARIANT with the file where `find_file` finds it."""
  file, colon, variant = path.partition(":")
  return f"{find_file(file)}{colon}{variant}"


def load_config(path: str) -> ConfigDict:
  """The config of "configs/clip.py:emoji".

  Raises:
    UserError: where there is no such file, or no such variant in it.
  """
  file, _, variant = find_config(path).partition(":")
  spec: Any = importlib.util.spec_from_file_location(pathlib.Path(file).stem, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(variant) if variant else module.get_config()
  trust.trust_named(config.to_dict())
  return config


def part_from(path: str) -> dict[str, Any]:
  """The section of a part whose shape, not its variables, is that of a config file's variant:
  nothing trained it.
  """
  config = load_config(path)
  return {"system": config.system, **config.model.to_dict()}


def to_json(config: ConfigDict) -> str:
  return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
  return ConfigDict(json.loads(text)).lock()


class Kept(NamedTuple):
  """A run's config.json."""

  requested: ConfigDict  # as the command gave it
  resolved: ConfigDict  # with the class and the fields of every part: it needs no other folder
  schema: int = SCHEMA


def write(folder: pathlib.Path, kept: Kept) -> None:
  """Writes `folder`/config.json."""
  content = {
    "schema": SCHEMA,
    "requested": kept.requested.to_dict(),
    "resolved": kept.resolved.to_dict(),
  }
  files.write(folder / "config.json", json.dumps(content, indent=2, sort_keys=True) + "\n")


def read(folder: pathlib.Path) -> Kept:
  """Reads a folder's config.json, of any schema that vlx has had.

  Raises:
    UserError: where there is none, or one that is not vlx's, or that names code of others
      (`vlx.core.trust`).
  """
  path = folder / "config.json"
  if not path.is_file():
    raise UserError(f"{folder} holds no run: there is no config.json")
  try:
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
      raise ValueError("not a JSON object")
  except (ValueError, RecursionError) as e:
    raise UserError(f"{path} is damaged: {e}") from e
  trust.check(content, path)
  try:
    return _of_content(content, path)
  except UserError:
    raise
  except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as e:
    said = " ".join(str(e).split())
    raise UserError(f"{path} is damaged, or not vlx's: {type(e).__name__}: {said}") from e


def _of_content(content: dict[str, Any], path: pathlib.Path) -> Kept:
  match content.get("schema", 1):
    case 1 if "preprocess" in content:
      content = schema1.converted(content)
    case 1 if "system" in content:
      content = schema1.upgrade(content, _part_of_schema1)
    case 2:
      pass
    case 1:
      raise UserError(f"{path} is not a run's config.json: it names no system")
    case other:
      raise UserError(
        f"{path} has schema {other}, and this version of vlx reads up to {SCHEMA}: update vlx"
      )
  requested, resolved = (_with_all_fields(content[k]) for k in ("requested", "resolved"))
  return Kept(requested, resolved, content["schema"])


def _with_all_fields(content: dict[str, Any]) -> ConfigDict:
  """Fields that a class has got since are at their defaults."""
  for name, kind in (("system", str), ("model", Mapping), ("data", Mapping)):
    if not isinstance(content[name], kind):
      raise TypeError(f"its {name} is {content[name]!r}")
  if not isinstance(ops := content["data"]["image_transform"], str):
    raise TypeError(f"its data.image_transform is {ops!r}")
  return finalize(ConfigDict(content))


def _part_of_schema1(path: str) -> dict[str, Any]:
  """The section of a part that a folder's path, or a config file's, named."""
  if ".py" in path and not pathlib.Path(path).is_dir():
    # It would be run: of vlx's own configs alone.
    own = pathlib.Path(__file__).parents[2] / "configs"
    if find_file(path.partition(":")[0]).resolve().parent != own.resolve():
      raise UserError(f"{path} is not a config of vlx's own, and to read it would run it")
    return part_from(path)
  resolved = read(pathlib.Path(path)).resolved
  return {"system": resolved.system, "source": path, **resolved.model.to_dict()}


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
