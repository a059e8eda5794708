"""Checkpoints: Orbax, asynchronous and atomic, kept by count and by best measure; and what is
frozen, written once.

A checkpoint holds what training moves, and checksums of it. What it does not move lies in `frozen/`
beside, once for a run, and once where several parts hold the same tensor. A reader of variables
need not know which is which.
"""

import contextlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from vlx.core import distributed, files, schema1
from vlx.core.checksums import checksums
from vlx.core.errors import UserError
from vlx.core.system import Variables, flatten, names, unflatten

Shapes = Mapping[str, jax.ShapeDtypeStruct]
CHECKSUMS = "checksums"  # beside the arrays, in the order of their names

# Devices that hold the same array write a share of it each: of a small one, cutting it costs more
# than writing it.
_ARRAYS = ocp.type_handlers.create_type_handler_registry(
  (jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=1 << 20))
)


class _KeepBest:
  """Preserves the checkpoint that `mark_best` names."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder

  def should_preserve(self, checkpoints, *, context) -> Sequence[bool]:
    del context
    best = best_of(self._folder)
    return [best is not None and info.step == best["step"] for info in checkpoints]


def open_manager(
  folder: pathlib.Path, *, keep: int = 1, read_only: bool = False
) -> ocp.CheckpointManager:
  """A manager of `folder`/STEP.

  Args:
    folder: of the checkpoints.
    keep: how many of the latest to keep, beside the best one.
    read_only: for readers of a run that may be going on.
  """
  return ocp.CheckpointManager(
    folder.absolute(),
    item_handlers=ocp.PyTreeCheckpointHandler(type_handler_registry=_ARRAYS),
    options=ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy(
        [policies.LatestN(keep), _KeepBest(folder)]
      ),
      create=not read_only,
      read_only=read_only,
      enable_async_checkpointing=not read_only,
      cleanup_tmp_directories=not read_only,
    ),
  )


def save(manager: ocp.CheckpointManager, step: int, state: Any) -> None:
  """Starts saving `state`; returns once its arrays are copied to the host."""
  if step in manager.all_steps():
    return
  flat = flatten(state)
  sums, beside = checksums(flat), next(iter(flat.values())).sharding
  if isinstance(beside, jax.sharding.NamedSharding):
    beside = jax.sharding.NamedSharding(beside.mesh, jax.sharding.PartitionSpec())
  flat[CHECKSUMS] = jax.make_array_from_callback(sums.shape, beside, sums.__getitem__)
  manager.save(step, args=ocp.args.PyTreeSave(unflatten(flat)))


def best_of(folder: pathlib.Path) -> dict[str, Any] | None:
  """`step`, `measure` and `value` of the best checkpoint, None where none is marked, or the mark is
  damaged.
  """
  try:
    best = json.loads((folder / "best.json").read_bytes())
    return {"step": int(best["step"]), "measure": best["measure"], "value": float(best["value"])}
  except (FileNotFoundError, ArithmeticError, ValueError, TypeError, KeyError, RecursionError):
    return None


def is_out_of_patience(section: Any, folder: pathlib.Path, step: int) -> bool:
  """Whether the best checkpoint is `patience` steps old at `step`, by a config's section
  `checkpoint`: a function of best.json alone, the same before and after a restart.
  """
  patience, best = section.get("patience", 0), best_of(folder)
  if not (patience and best and best["measure"] == section["best"]):
    return False
  return step - best["step"] >= patience


def mark_best(folder: pathlib.Path, step: int, measure: str, value: float, *, higher: bool) -> None:
  """Marks the checkpoint of `step` as the best, where it is: it is kept until a better one
  comes.
  """
  best = best_of(folder)
  if (
    best
    and best["measure"] == measure
    and not (value > best["value"] if higher else value < best["value"])
  ):
    return
  if np.isfinite(value) and distributed.is_first():
    files.write(
      folder / "best.json", json.dumps({"step": step, "measure": measure, "value": value}) + "\n"
    )


def restore_latest(
  manager: ocp.CheckpointManager, like: Any, *, quarantine_corrupt: bool = False
) -> tuple[int, Any] | None:
  """(step, state) of the newest checkpoint that can be read, None where there is none at all.

  Args:
    manager: of the run's checkpoints.
    like: a state of `jax.ShapeDtypeStruct` with shardings: the arrays come back so placed.
    quarantine_corrupt: whether to rename newer ones that cannot be read to `damaged-STEP`, so that
      their steps can be saved again.

  Raises:
    UserError: where the checkpoint is of other shapes (every mismatch is named), or none of the
      checkpoints can be read.
  """
  wanted = flatten(like)

  def renamed(step):
    """Name of today → where it stands."""
    saved = _saved(manager, step)
    if schema1.is_state(saved):
      return schema1.state_names(saved, wanted)
    return {n: n for n in {*saved, *wanted}}

  def read(step, _):
    saved, where = _saved(manager, step), renamed(step)
    _check(step, {n: saved[s] for n, s in where.items() if s in saved}, wanted)
    return _read(manager, step, {where[n]: s for n, s in wanted.items()})

  if (newest := _newest(manager, read, _verified, quarantine_corrupt=quarantine_corrupt)) is None:
    return None
  step, found = newest
  where = renamed(step)
  return step, jax.tree.unflatten(
    jax.tree.structure(like), [found.arrays[where[n]] for n in wanted]
  )


def _newest(
  manager: ocp.CheckpointManager,
  *looks: Callable[[int, Any], Any],
  quarantine_corrupt: bool = False,
) -> tuple[int, Any] | None:
  """(step, found) of the newest checkpoint that all processes can read; None where there is none.

  Each of the looks has the step and what the one before found, and raises where it is damaged.
  """
  failures = {}
  for step in sorted(manager.all_steps(), reverse=True):
    found = failure = None
    for look in looks:
      try:
        found = look(step, found)
      except UserError:
        raise
      except Exception as e:  # Orbax, tensorstore and the file system each have their own.
        reason = (str(e).splitlines() or [""])[0].partition(" [tensorstore_spec=")[0]
        failure = f"{type(e).__name__}: {reason}"
      # What one process cannot read, no process uses: all must go on from the same step.
      if not multihost_utils.process_allgather(np.array(failure is None)).all():
        failures[step] = failure or "another process cannot read it"
        break
    else:
      if failures and quarantine_corrupt:
        _quarantine(manager, failures)
      return step, found
    logging.warning("checkpoint %s cannot be read, trying the one before: %s", step, failures[step])
  if failures:
    named = ", ".join(f"{step} ({error})" for step, error in failures.items())
    raise UserError(f"none of the checkpoints in {manager.directory} can be read: {named}")
  return None


def _quarantine(manager: ocp.CheckpointManager, steps) -> None:
  for step in steps:
    if distributed.is_first():
      aside = manager.directory / f"damaged-{step}"
      if aside.exists():
        aside.rmtree()
      (manager.directory / str(step)).rename(aside)
  multihost_utils.sync_global_devices("damaged checkpoints are put aside")
  manager.reload()


def _saved(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
  """Name → shape and dtype of what a checkpoint holds; no array is read."""
  saved = flatten(manager.item_metadata(step).tree)
  return {name: x for name, x in saved.items() if name != CHECKSUMS}


class DamagedError(Exception):
  """A checkpoint that is not as it was written."""


class _Read(NamedTuple):
  """Some arrays of a checkpoint, by the names they have there, in the dtypes they have there."""

  wanted: Shapes
  arrays: dict[str, jax.Array]
  sums: Mapping[str, np.ndarray]  # the checksums of all; none of those that older versions wrote


def _read(manager: ocp.CheckpointManager, step: int, wanted: Shapes) -> _Read:
  """Reads each array straight to its shards. Where there is a `step` among them it is read too."""
  if not wanted:  # all of it is frozen
    return _Read({}, {}, {})
  folder = manager.directory / str(step)
  if os.path.islink(folder):
    raise DamagedError("it is a link to somewhere else")
  tree = manager.item_metadata(step).tree
  saved = flatten(tree)
  beside = _replicated(wanted)
  own = lambda name, sharding: jax.ShapeDtypeStruct(
    saved[name].shape, saved[name].dtype, sharding=sharding
  )
  asked = {n: own(n, s.sharding) for n, s in wanted.items() if n in saved}
  asked |= {n: own(n, beside) for n in (CHECKSUMS, "step") if n in saved and n not in asked}
  item = jax.tree.map(lambda name: asked.get(name, ocp.PLACEHOLDER), names(tree))
  # Not `manager.restore`: it waits for the other processes at its end, and one that fails never
  # comes.
  with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
    found = flatten(
      handler.restore(
        folder / "default",
        args=ocp.args.PyTreeRestore(
          item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item)
        ),
      )
    )
  if "step" in asked and int(found["step"]) != step:
    raise DamagedError(f"it is the one of step {int(found['step'])}")
  arrays = sorted(saved.keys() - {CHECKSUMS})
  sums = np.asarray(found[CHECKSUMS]) if CHECKSUMS in saved else np.zeros((0, 2))
  if CHECKSUMS in saved and len(sums) != len(arrays):
    raise DamagedError(f"it holds {len(arrays)} arrays, and had {len(sums)}")
  return _Read(wanted, {n: found[n] for n in asked if n in wanted}, dict(zip(arrays, sums)))


def _replicated(wanted: Shapes) -> jax.sharding.Sharding:
  """A sharding for what is small, of the same devices."""
  sharding = next(iter(wanted.values())).sharding
  if isinstance(sharding, jax.sharding.NamedSharding):
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
  return sharding


def _verified(step: int, found: _Read) -> _Read:
  """The arrays in the dtypes that are wanted, once they are seen to be those that were saved; all
  processes together.
  """
  del step
  if found.sums:
    now = dict(zip(sorted(found.arrays), checksums(found.arrays)))
    if changed := [n for n, x in now.items() if (x != found.sums[n]).any()]:
      raise DamagedError(f"{len(changed)} arrays are not those that were saved, e.g. {changed[0]}")
  return found._replace(
    arrays={n: x.astype(found.wanted[n].dtype) for n, x in found.arrays.items()}
  )


def _check(step: int, saved: Mapping[str, Any], wanted: Shapes) -> None:
  """Compares names, shapes and dtypes before any array is read."""
  described = lambda tree: {name: f"{x.dtype}{list(x.shape)}" for name, x in tree.items()}
  if lines := differences(described(saved), described(wanted), "saved", "in this model"):
    raise UserError(f"checkpoint {step} does not match the model: {'; '.join(lines)}")


def differences(
  these: Mapping[str, Any], those: Mapping[str, Any], here: str, there: str
) -> list[str]:
  """A line for every name under which two trees, flat, have different descriptions."""
  return [
    f"{name}: {these.get(name, 'nothing')} {here}, {those.get(name, 'nothing')} {there}"
    for name in sorted({*these, *those})
    if these.get(name) != those.get(name)
  ]


def save_frozen(workdir: pathlib.Path, frozen: Variables) -> None:
  """Writes what training does not move, once, before the first checkpoint; equal arrays once.

  Arrays are equal where they are the same object, as `vlx.train.initialize` gives parts of one
  source.
  """
  flat, first, same = flatten(frozen), {}, {}
  for name, x in flat.items():
    same[name] = first.setdefault(id(x), name)
  if distributed.is_first():
    files.write(
      workdir / "frozen" / "same.json", json.dumps({n: s for n, s in same.items() if n != s}) + "\n"
    )
  with open_manager(workdir / "frozen") as manager:
    save(manager, 0, unflatten({n: flat[n] for n in first.values()}))


def has_frozen(workdir: pathlib.Path) -> bool:
  return (workdir / "frozen" / "0").is_dir()


def read_frozen(workdir: pathlib.Path, wanted: Shapes) -> dict[str, jax.Array]:
  """Name → array of what `save_frozen` wrote; where two names have the same array there, they
  have it here.
  """
  if not wanted:
    return {}
  same = _same(workdir)
  stored = {same.get(name, name): s for name, s in wanted.items()}
  with open_manager(workdir / "frozen", read_only=True) as manager:
    newest = _newest(manager, lambda step, _: _read(manager, step, stored), _verified)
  found = newest[1].arrays if newest else {}
  if lacking := sorted({*stored} - {*found}):
    raise UserError(f"{workdir / 'frozen'} lacks {', '.join(lacking)}")
  return {name: found[same.get(name, name)] for name in wanted}


def _same(workdir: pathlib.Path) -> dict[str, str]:
  """Name → that of the equal array which is stored."""
  path = workdir / "frozen" / "same.json"
  try:
    same = json.loads(path.read_bytes())
    if isinstance(same, dict) and all(isinstance(name, str) for name in same.values()):
      return same
  except (OSError, ValueError, RecursionError):
    pass
  raise UserError(f"{path} is missing or damaged")


class RunVariables:
  """The variables of a run's or a converted folder, for inference: averaged where it keeps an
  average.

  Neither the run's data nor its mesh need be there. Names are "params/…" and "state/…".

  Args:
    workdir: the folder.
    parts: names of the system's parts, for folders of schema 1.

  Raises:
    UserError: where there is no checkpoint.
  """

  def __init__(self, workdir: pathlib.Path, parts: Sequence[str] = ()):
    self._workdir, self._parts = workdir, parts
    folder = workdir / "checkpoints"
    if folder.is_dir():
      with open_manager(folder, read_only=True) as manager:
        if newest := _newest(manager, lambda step, _: self._shapes(manager, step)):
          self.shapes = newest[1]
          return
    raise UserError(f"{workdir} holds no checkpoint yet")

  def _where(self, manager, step) -> dict[str, str]:
    """Variable → its name in a checkpoint: an average comes before what it averages."""
    saved = _saved(manager, step)
    found = {n.removeprefix("variables/"): n for n in saved if n.startswith("variables/")}
    found |= {f"params/{n.removeprefix('average/')}": n for n in saved if n.startswith("average/")}
    return schema1.variable_names(found, self._parts)

  def _shapes(self, manager, step) -> dict[str, jax.ShapeDtypeStruct]:
    saved = _saved(manager, step)
    found = {n: saved[s] for n, s in self._where(manager, step).items()}
    if has_frozen(self._workdir):
      same = _same(self._workdir)
      with open_manager(self._workdir / "frozen", read_only=True) as frozen:
        stored = _saved(frozen, 0)
      found |= stored | {name: stored[s] for name, s in same.items()}
    return {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in found.items()}

  def read(self, wanted: Shapes) -> dict[str, jax.Array]:
    """Some of the variables, each straight to its sharding and dtype."""
    with open_manager(self._workdir / "checkpoints", read_only=True) as manager:

      def read(step, _):
        where = self._where(manager, step)
        return _read(manager, step, {where[n]: s for n, s in wanted.items() if n in where})

      newest = _newest(manager, read, _verified)
      found = {}
      if newest:
        where = self._where(manager, newest[0])
        found = {n: newest[1].arrays[where[n]] for n in wanted if n in where}
    return {
      **found,
      **read_frozen(self._workdir, {n: s for n, s in wanted.items() if n not in found}),
    }
