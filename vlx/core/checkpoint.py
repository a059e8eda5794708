"""Checkpoints: Orbax, asynchronous and atomic, kept by count and by best measure; and what is
frozen, written once.

A checkpoint holds what training moves. What it does not move lies in `frozen/` beside, once for a
run, and once where several parts hold the same tensor. A reader of variables need not know which is
which.
"""

import contextlib
import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from vlx.core import distributed, files, schema1
from vlx.core.errors import UserError
from vlx.core.system import Variables, flatten, names, unflatten

Shapes = Mapping[str, jax.ShapeDtypeStruct]

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
  if step not in manager.all_steps():
    manager.save(step, args=ocp.args.PyTreeSave(state))


def best_of(folder: pathlib.Path) -> dict[str, Any] | None:
  """`step`, `measure` and `value` of the best checkpoint, None where none is marked."""
  path = folder / "best.json"
  return json.loads(path.read_text()) if path.is_file() else None


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

  def read(step):
    saved = _saved(manager, step)
    renamed = (
      schema1.state_names(saved, wanted)
      if schema1.is_state(saved)
      else {n: n for n in {*saved, *wanted}}
    )
    _check(step, {n: saved[s] for n, s in renamed.items() if s in saved}, wanted)
    found = _read(manager, step, {renamed[n]: s for n, s in wanted.items()})
    return jax.tree.unflatten(jax.tree.structure(like), [found[renamed[n]] for n in wanted])

  return _newest(manager, read, quarantine_corrupt)


def _newest(
  manager: ocp.CheckpointManager, read: Callable[[int], Any], quarantine_corrupt: bool = False
) -> tuple[int, Any] | None:
  """(step, read(step)) of the newest checkpoint that all processes can read."""
  failures = {}
  for step in sorted(manager.all_steps(), reverse=True):
    found = failure = None
    try:
      found = read(step)
    except UserError:
      raise
    except Exception as e:  # Orbax, tensorstore and the file system each have their own.
      failure = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
    # What one process cannot read, no process uses: all must go on from the same step.
    if not multihost_utils.process_allgather(np.array(failure is None)).all():
      failures[step] = failure or "another process cannot read it"
      logging.warning(
        "checkpoint %s cannot be read, trying the one before: %s", step, failures[step]
      )
      continue
    if failures and quarantine_corrupt:
      _quarantine(manager, failures)
    return step, found
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
  return flatten(manager.item_metadata(step).tree)


def _read(manager: ocp.CheckpointManager, step: int, wanted: Shapes) -> dict[str, jax.Array]:
  """Some arrays of a checkpoint, by the names they have there, each read straight to its shards
  and in its dtype.
  """
  tree = manager.item_metadata(step).tree
  item = jax.tree.map(lambda name: wanted.get(name, ocp.PLACEHOLDER), names(tree))
  # Not `manager.restore`: it waits for the other processes at its end, and one that fails never
  # comes.
  with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
    found = handler.restore(
      manager.directory / str(step) / "default",
      args=ocp.args.PyTreeRestore(
        item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item)
      ),
    )
  return {n: x for n, x in flatten(found).items() if n in wanted}


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
  same = json.loads((workdir / "frozen" / "same.json").read_text())
  stored = {same.get(name, name): s for name, s in wanted.items()}
  with open_manager(workdir / "frozen", read_only=True) as manager:
    found = _read(manager, 0, stored)
  if lacking := sorted({*stored} - {*found}):
    raise UserError(f"{workdir / 'frozen'} lacks {', '.join(lacking)}")
  return {name: found[same.get(name, name)] for name in wanted}


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
        if (last := manager.latest_step()) is not None:
          self.shapes = self._shapes(manager, last)
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
      same = json.loads((self._workdir / "frozen" / "same.json").read_text())
      with open_manager(self._workdir / "frozen", read_only=True) as frozen:
        stored = _saved(frozen, 0)
      found |= stored | {name: stored[s] for name, s in same.items()}
    return {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in found.items()}

  def read(self, wanted: Shapes) -> dict[str, jax.Array]:
    """Some of the variables, each straight to its sharding and dtype."""
    with open_manager(self._workdir / "checkpoints", read_only=True) as manager:

      def of_step(step):
        where = self._where(manager, step)
        moving = {n: s for n, s in wanted.items() if n in where}
        found = _read(manager, step, {where[n]: s for n, s in moving.items()})
        return {n: found[where[n]] for n in moving}

      newest = _newest(manager, of_step)
    found: dict[str, jax.Array] = newest[1] if newest else {}
    return {
      **found,
      **read_frozen(self._workdir, {n: s for n, s in wanted.items() if n not in found}),
    }
