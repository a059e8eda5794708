"""Checkpoints: Orbax, asynchronous and atomic, kept by count and by best measure."""

import contextlib
import logging
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from vlx.core import distributed
from vlx.core.errors import UserError
from vlx.core import partition


def open_manager(
    folder: pathlib.Path, *, keep: int = 1, best: str = "", read_only: bool = False
) -> ocp.CheckpointManager:
  """A manager of `folder`/STEP.

  Args:
    folder: of the checkpoints.
    keep: how many of the latest to keep.
    best: a measure of results, as "retrieval/combo/image_to_text_r1"; the checkpoint where it was
      highest is kept too. Empty: none.
    read_only: for readers of a run that may be going on.
  """
  kept = [policies.LatestN(keep)]
  if best:
    kept.append(policies.BestN(
        get_metric_fn=lambda measures: measures[best], n=1, keep_checkpoints_without_metrics=False
    ))
  return ocp.CheckpointManager(
      folder.absolute(),
      item_handlers=ocp.StandardCheckpointHandler(),
      options=ocp.CheckpointManagerOptions(
          preservation_policy=policies.AnyPreservationPolicy(kept),
          create=not read_only, read_only=read_only, enable_async_checkpointing=not read_only,
          cleanup_tmp_directories=not read_only,
      ),
  )


def save(manager: ocp.CheckpointManager, step: int, state: Any, measures: dict[str, float]) -> None:
  """Starts saving `state`; returns once its arrays are copied to the host."""
  if step not in manager.all_steps():
    manager.save(step, args=ocp.args.StandardSave(state), metrics=measures or None)


def restore_latest(
    manager: ocp.CheckpointManager, like: Any, *, put_aside: bool = False
) -> tuple[int, Any] | None:
  """(step, state) of the newest checkpoint that can be read, None where there is none at all.

  Args:
    manager: of the run's checkpoints.
    like: a state of `jax.ShapeDtypeStruct` with shardings: the arrays come back so placed.
    put_aside: whether to rename newer ones that cannot be read to `damaged-STEP`, so that their
      steps can be saved again.

  Raises:
    UserError: where the checkpoint is of other shapes (every mismatch is named), or none of the
      checkpoints can be read.
  """
  failures = {}
  for step in sorted(manager.all_steps(), reverse=True):
    state = failure = None
    try:
      _check(manager, step, like)
      # Not `manager.restore`: it waits for the other processes at its end, and one that fails never comes.
      with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        state = handler.restore(
            manager.directory / str(step) / "default", args=ocp.args.StandardRestore(like)
        )
    except UserError:
      raise
    except Exception as e:  # Orbax, tensorstore and the file system each have their own.
      failure = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
    # What one process cannot read, no process uses: all must go on from the same step.
    if not multihost_utils.process_allgather(np.array(failure is None)).all():
      failures[step] = failure or "another process cannot read it"
      logging.warning("checkpoint %s cannot be read, trying the one before: %s", step, failures[step])
      continue
    if failures and put_aside:
      _put_aside(manager, failures)
    return step, state
  if failures:
    named = ", ".join(f"{step} ({error})" for step, error in failures.items())
    raise UserError(f"none of the checkpoints in {manager.directory} can be read: {named}")
  return None


def restore_variables(workdir: pathlib.Path, sharding: jax.sharding.Sharding) -> Any:
  """A run's variables for inference, of its last checkpoint that can be read: averaged where it keeps an average.

  Names and shapes are those of the checkpoint: neither the run's data nor its mesh need be there.

  Raises:
    UserError: where there is none.
  """
  folder = workdir / "checkpoints"
  if folder.is_dir():
    with open_manager(folder, read_only=True) as manager:
      if (last := manager.latest_step()) is not None:
        placed = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        _, state = restore_latest(manager, jax.tree.map(placed, manager.item_metadata(last).tree))
        return {
            "params": state["average"] or state["variables"]["params"],
            "state": state["variables"].get("state", {}),
        }
  raise UserError(f"{workdir} holds no checkpoint yet")


def _put_aside(manager: ocp.CheckpointManager, steps) -> None:
  for step in steps:
    if distributed.is_first():
      aside = manager.directory / f"damaged-{step}"
      if aside.exists():
        aside.rmtree()
      (manager.directory / str(step)).rename(aside)
  multihost_utils.sync_global_devices("damaged checkpoints are put aside")
  manager.reload()


def _check(manager: ocp.CheckpointManager, step: int, like: Any) -> None:
  """Compares names, shapes and dtypes before any array is read."""

  def described(tree):
    pairs = zip(jax.tree.leaves(partition.names(tree)), jax.tree.leaves(tree))
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in pairs}

  saved = described(manager.item_metadata(step).tree)
  wanted = described(like)
  lines = [
      f"{name}: {saved.get(name, 'nothing')} saved, {wanted.get(name, 'nothing')} in this model"
      for name in sorted({*saved, *wanted}) if saved.get(name) != wanted.get(name)
  ]
  if lines:
    raise UserError(f"checkpoint {step} is of another model: {'; '.join(lines)}")
