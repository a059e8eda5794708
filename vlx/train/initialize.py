"""Where a run's variables come from before its first step: initialized at random, or taken from
runs and public checkpoints.

`config.init` is a list of entries, later ones over earlier ones:

  dict(source="runs/objects", take="tower", put="encoder/backbone", without=("head/.*",), layers=(0,
  6))

What stands below the path `take` in the source, "" being all, is put below the path `put` here:
parameters and batch statistics. `without` are patterns of paths, behind `take` or `put`, that are
not filled; all else must fit. `layers` takes some of a scanned stack. A source is a run's folder, a
public checkpoint (`vlx.pretrained`), or a `.npy` file, whose array becomes the one parameter `put`.
A part with a `source` is an entry that puts all of it below the part. What is frozen must be filled
by one of them, or be said to stay at random: dict(source="random", put="encoder").

Each tensor goes straight to its shards. Position tables of another grid are resampled.
"""

import math
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlx import pretrained
from vlx.core import config as configs
from vlx.core import system as systems
from vlx.core.config import ConfigDict
from vlx.core.errors import UserError
from vlx.core.system import System, flatten, split_state
from vlx.data.tokenizers import Tokenizer
from vlx.models.layers.position import resample_positions
from vlx.pretrained import Checkpoint

ENTRY = {"take": "", "put": "", "without": (), "layers": None}
RANDOM = "random"  # a source that fills nothing


def resolve(config: ConfigDict) -> ConfigDict:
  """The config with the class and all fields of every part, read where the part's source is.

  Raises:
    UserError: where a source is missing or is of another system than the config says.
  """
  model = _resolve_parts(config.model.to_dict(), "model")
  resolved = ConfigDict({**config.to_dict(), "model": model})
  return configs.finalize(resolved)


def _resolve_parts(section: Mapping[str, Any], where: str) -> dict[str, Any]:
  found = {}
  for name, value in section.items():
    if configs.is_part(value):
      if "system" not in value:
        source = pretrained.open_checkpoint(value["source"])
        value = {**configs.part_of(source.system), **value}
      value = _resolve_parts(value, f"{where}.{name}")
    found[name] = value
  return found


def entries(config: ConfigDict) -> list[dict[str, Any]]:
  """All entries of a resolved config, those of its parts first.

  Raises:
    UserError: for an entry with a field that there is not, or without a source.
  """
  found = list(_part_entries(config.model.to_dict(), ""))
  for entry in config.init:
    entry = dict(entry)
    if unknown := sorted(set(entry) - {"source", *ENTRY}):
      raise UserError(
        f"no field {unknown[0]!r} in config.init: {configs.nearest(unknown[0], ['source', *ENTRY])}"
      )
    if "source" not in entry:
      raise UserError(f"config.init: {entry} has no source")
    found.append({**ENTRY, **entry})
  return found


def _part_entries(section: Mapping[str, Any], prefix: str) -> Iterator[dict[str, Any]]:
  for name, value in section.items():
    if configs.is_part(value):
      if "source" in value:  # of the part's own parts too
        yield {**ENTRY, "source": value["source"], "put": f"{prefix}{name}"}
      else:
        yield from _part_entries(value, f"{prefix}{name}/")


def tokenizer_of_parts(config: ConfigDict) -> Tokenizer:
  """The tokenizer that the sources of a resolved config's parts share (`tokenizer.kind` "parts").

  Raises:
    UserError: where they do not, or want images in another form than the run's.
  """
  sources = dict.fromkeys(e["source"] for e in _part_entries(config.model.to_dict(), ""))
  if not sources:
    raise UserError('tokenizer.kind "parts": no part has a source')
  found, saved = {}, {}
  with tempfile.TemporaryDirectory() as folder:
    for source in sources:
      opened = pretrained.open_checkpoint(source)
      if (tokenizer := opened.tokenizer()) is None:
        raise UserError(f"{source} has no tokenizer beside it")
      if opened.image_transform != config.data.image_transform:
        raise UserError(
          f"{source} takes images by {opened.image_transform!r}, and data.image_transform is"
          f" {config.data.image_transform!r}"
        )
      path = pathlib.Path(folder) / "tokenizer.json"
      tokenizer.save(path)
      found[source], saved[source] = tokenizer, path.read_bytes()
  first, *others = sources
  for other in others:
    if saved[other] != saved[first]:
      raise UserError(f"{first} and {other} have different tokenizers: their words do not agree")
  return found[first]


class _Filling(NamedTuple):
  """From where one variable is filled."""

  source: str
  name: str  # of the variable there
  layers: tuple[int, int] | None


def variables(
  system: System,
  config: ConfigDict,
  wanted: Mapping[str, jax.ShapeDtypeStruct],
  rng: jax.Array,
  *,
  frozen: frozenset[str] = frozenset(),
) -> dict[str, jax.Array]:
  """Name → array of all variables, each where it lives; where two are one tensor of a source, one
  array.

  Args:
    system: whose variables they are.
    config: resolved.
    wanted: shape, dtype and sharding of each.
    rng: for those that no source fills: they alone are initialized.
    frozen: names of those that do not learn, and that nothing else makes.

  Raises:
    UserError: for all that does not fit, a line for each entry, and for what is frozen and would
      stay at random without a word.
  """
  sources, fillings, left = {}, {}, frozen
  for entry in entries(config):
    spec = entry["source"]
    if spec == RANDOM:
      left -= {*_below({n: None for n in left}, entry["put"], system, ()).values()}
      continue
    if spec not in sources:
      sources[spec] = _open(spec)
    fillings |= _fit(entry, sources[spec], system, wanted)
  if left := sorted(left - {*fillings}):
    raise UserError(
      f"{len(left)} frozen variables would stay at random, e.g. {left[0]}: fill them by config.init, or say"
      ' that this is wanted by an entry {"source": "random", "put": …}'
    )
  arrays = _draw(system, {n: s for n, s in wanted.items() if n not in fillings}, rng)
  for spec, source in sources.items():
    arrays |= _fill(source, {n: f for n, f in fillings.items() if f.source == spec}, wanted)
  return arrays


_NO_SYSTEM: Any = None  # of an array file


def _open(spec: str) -> Checkpoint:
  if not spec.endswith(".npy"):
    return pretrained.open_checkpoint(spec)
  path = pathlib.Path(spec).expanduser()
  if not path.is_file():
    raise UserError(f"config.init: no file {spec}")
  array = np.load(path)

  def read(wanted):
    return {n: jax.device_put(array.astype(s.dtype), s.sharding) for n, s in wanted.items()}

  shape = jax.ShapeDtypeStruct(array.shape, array.dtype)
  return Checkpoint(_NO_SYSTEM, {"params/": shape}, read, lambda: None, "")


def _fit(
  entry: Mapping[str, Any],
  source: Checkpoint,
  system: System,
  wanted: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, _Filling]:
  """Variable → where it comes from, for one entry."""
  spec, without, layers = entry["source"], tuple(entry["without"]), entry["layers"]
  theirs = _below(source.shapes, entry["take"], source.system, without)
  ours = _below(wanted, entry["put"], system, without)
  lines = [f"{ours[key]} is not in {spec}" for key in sorted({*ours} - {*theirs})]
  lines += [f"this system has nothing for {theirs[key]}" for key in sorted({*theirs} - {*ours})]
  for key in sorted({*ours} & {*theirs}):
    there, here = source.shapes[theirs[key]].shape, wanted[ours[key]].shape
    taken = (layers[1] - layers[0], *there[1:]) if layers and _is_scanned(theirs[key]) else there
    if taken != here and _grids(theirs[key], taken, here) is None:
      lines.append(f"{ours[key]}: {list(taken)} in {spec}, {list(here)} here")
  if not theirs:
    lines = [f"nothing stands below {entry['take']!r}"]
  if lines:
    raise UserError(f"config.init from {spec}: {'; '.join(lines)}")
  return {
    ours[key]: _Filling(spec, name, tuple(layers) if layers and _is_scanned(name) else None)
    for key, name in theirs.items()
  }


class _Key(NamedTuple):
  """The facts by which two variables are one another's, with the path below the one that
  is taken or put.
  """

  kind: str  # "params" or "state"
  collection: str  # of `state`
  path: str


def _below(
  names: Mapping[str, Any], root: str, system: Any, without: tuple[str, ...]
) -> dict[_Key, str]:
  """The names of what stands below a path."""
  found = {}
  for name in names:
    kind, _, rest = name.partition("/")
    collection, path = ("", rest) if kind == "params" else split_state(rest, system)
    if root and not f"{path}/".startswith(f"{root}/"):
      continue
    behind = path[len(root) :].lstrip("/")
    if not any(re.fullmatch(pattern, behind) for pattern in without):
      found[_Key(kind, collection, behind)] = name
  return found


def _is_scanned(name: str) -> bool:
  return "blocks" in name.split("/")


def _grids(path: str, there: tuple[int, ...], here: tuple[int, ...]) -> tuple[int, int] | None:
  """Sides of the square grids of two position tables `[1, cls + N, D]` that differ in N alone;
  else None.
  """
  if (
    not path.endswith("position_embedding")
    or len(there) != 3
    or (there[0], there[2]) != (here[0], here[2])
  ):
    return None
  for cls in (1, 0):
    sides = tuple(math.isqrt(shape[1] - cls) for shape in (there, here))
    if all(side**2 + cls == shape[1] for side, shape in zip(sides, (there, here))):
      return sides[0], sides[1]
  return None


def _draw(
  system: System, wanted: Mapping[str, jax.ShapeDtypeStruct], rng: jax.Array
) -> dict[str, jax.Array]:
  """Fresh variables of these names; the program makes no others."""
  if not wanted:
    return {}

  def some(rng):
    flat = flatten(systems.init(system, rng))
    return {n: flat[n].astype(s.dtype) for n, s in wanted.items()}

  return jax.jit(some, out_shardings={n: s.sharding for n, s in wanted.items()})(rng)


def _fill(
  source: Checkpoint, fillings: Mapping[str, _Filling], wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
  """Name → array of the variables that a source fills; tensors that several are filled from are
  read once.
  """
  groups: dict[tuple, list[str]] = {}
  for name, filling in fillings.items():
    target = wanted[name]
    groups.setdefault((filling, target.dtype, target.sharding, target.shape), []).append(name)
  arrays, rest = {}, groups
  while rest:  # one tensor in two places or types takes two readings
    now, later = {}, {}
    for group, members in rest.items():
      (later if group[0].name in {g[0].name for g in now} else now)[group] = members
    asked = {}
    for (filling, dtype, sharding, shape), _ in now.items():
      there = source.shapes[filling.name].shape
      # A table of another grid may not divide: it is small, and whole on every device for a moment.
      whole = there == shape or filling.layers is not None
      asked[filling.name] = jax.ShapeDtypeStruct(
        there, dtype, sharding=sharding if whole else _replicated(sharding)
      )
    found = source.read(asked)
    for (filling, _, sharding, shape), members in now.items():
      array = _adapt(filling, found.pop(filling.name), shape, sharding)
      arrays |= dict.fromkeys(members, array)
    rest = later
  return arrays


def _replicated(sharding: jax.sharding.NamedSharding) -> jax.sharding.NamedSharding:
  return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())


def _adapt(filling: _Filling, array: jax.Array, shape: tuple[int, ...], sharding) -> jax.Array:
  """Some of the layers, or positions of another grid."""
  if filling.layers is not None:
    first, last = filling.layers
    return jax.jit(lambda x: x[first:last], out_shardings=sharding)(array)
  if array.shape == shape:
    return array
  grids = _grids(filling.name, array.shape, shape)
  assert grids  # `_fit` saw them
  old, new = grids
  resample = lambda x: resample_positions(x.astype(jnp.float32), (old, old), (new, new)).astype(
    x.dtype
  )
  return jax.jit(resample, out_shardings=sharding)(array)
