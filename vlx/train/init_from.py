"""Parameters that start where another run ended, or at an array of a file.

`config.init_from` is a list of (place, name there, name here). Of a run's folder, all that stands there below
a name, as "tower" of a classifier, is put below a name of this system, as "encoder" of a captioner: parameters
and batch statistics; "" is everything. Of a `.npy` file the array becomes the one parameter of that name (word
vectors: a row for each id of the run's tokenizer).
"""

import pathlib

import jax
import numpy as np
from flax import traverse_util

from vlx.core.errors import UserError
from vlx.core.system import Variables
from vlx.core import checkpoint
from vlx.core import partition


def replace(variables: Variables, rules, mesh: jax.sharding.Mesh) -> Variables:
  """`variables` with what the rules name put in.

  Args:
    variables: fresh ones, placed on their devices.
    rules: (place, name there, name here), later ones over earlier ones.
    mesh: of these devices.

  Raises:
    UserError: where a name is missing on either side, or a shape differs; every one is named.
  """
  ours = traverse_util.flatten_dict(variables, sep="/")
  for place, there, here in rules:
    file = place.endswith(".npy")
    theirs = {f"params/{there}": _read(place)} if file else traverse_util.flatten_dict(
        checkpoint.restore_variables(pathlib.Path(place), partition.replicated(mesh)), sep="/"
    )
    found = {_moved(name, there, here): x for name, x in theirs.items() if _below(_path(name), there)}
    wanted = {name for name in ours if _below(_path(name), here)}
    lines = [f"{name} is not in {place}" for name in sorted(wanted - {*found})]
    lines += [f"this system has no {name}" for name in sorted({*found} - wanted)]
    lines += [
        f"{name}: {list(found[name].shape)} in {place}, {list(ours[name].shape)} here"
        for name in sorted(wanted & {*found}) if found[name].shape != ours[name].shape
    ]
    if lines or not found:
      raise UserError(f"init_from {place}: {'; '.join(lines) or f'nothing stands below {there!r}'}")
    for name, x in found.items():
      ours[name] = jax.device_put(np.asarray(x, ours[name].dtype), ours[name].sharding)
  return {**variables, **traverse_util.unflatten_dict(ours, sep="/")}  # "state" also where nothing is in it


def _read(place: str) -> np.ndarray:
  if not pathlib.Path(place).is_file():
    raise UserError(f"init_from: no file {place}")
  return np.load(place)


def _path(name: str) -> str:
  """A parameter's or statistic's path in its network: without "params" or "state/batch_stats" before it."""
  return name.split("/", 1 if name.startswith("params/") else 2)[-1]


def _below(path: str, prefix: str) -> bool:
  return not prefix or f"{path}/".startswith(f"{prefix}/")


def _moved(name: str, there: str, here: str) -> str:
  path = _path(name)
  collection = name[: len(name) - len(path)]
  rest = path.removeprefix(there).removeprefix("/")
  return collection + "/".join(part for part in (here, rest) if part)
