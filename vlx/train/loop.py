"""The one training loop.

Order of a step (the state that is saved and evaluated is always the one *before* the batch):

  save → evaluate → batch → step → log the step before, whose numbers are ready by then
"""

import contextlib
import signal
import time
from collections.abc import Mapping
from typing import Any, Protocol

import filelock
import jax
import numpy as np
from jax.experimental import multihost_utils

from vlx.core import checkpoint, distributed, files, partition, xla
from vlx.core.errors import UserError
from vlx.core.system import Variables
from vlx.data import batches
from vlx.train import going_on
from vlx.train import step as steps
from vlx.train.logging import MetricsLog
from vlx.train.run import Run
from vlx.train.state import TrainState

PROFILED_STEPS = (10, 15)  # after the first, which compile and fill caches


class OnEvaluate(Protocol):
  """Evaluation at some steps, which a command hands to the loop (`vlx.evaluate.runner.Evaluation`)."""

  def due(self, step: int, last: int, measure: str = "") -> bool:
    """Whether anything is to be evaluated at a step; with a `measure`, whether that is."""
    ...

  def __call__(
    self,
    step: int,
    variables: Variables,
    log: MetricsLog,
    *,
    before: Mapping[str, float] | None = None,
  ) -> dict[str, float]:
    """Evaluates what is due, and gives measures "evaluator/split/measure"; with `before`, what was
    measured at this step already, all the rest, for the run ends here.
    """
    ...

  def is_higher_better(self, measure: str) -> bool:
    """Whether a higher value is better, for a measure that `checkpoint.best` names."""
    ...

  def write_report(self) -> None:
    """From what the folder holds."""
    ...


class _Nothing:
  """Evaluates nothing."""

  def due(self, step, last, measure=""):
    return False

  def __call__(self, step, variables, log, *, before=None):
    return {}

  def is_higher_better(self, measure):
    return True

  def write_report(self):
    pass


class _Stop:
  """Remembers that SIGTERM or ctrl-C came; the loop ends at the next step. A second ctrl-C ends at
  once.

  Of many processes any may get it. JAX's preemption service, which has SIGTERM then, tells the
  others, and all agree on the step.
  """

  def __init__(self):
    self._asked = False
    self._before = {}

  def __enter__(self):
    signals = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
    self._before = {number: signal.signal(number, self._ask) for number in signals}
    return self

  def _ask(self, number, _):
    self._asked = True
    if number == signal.SIGINT:
      signal.signal(number, self._before[number])

  def at(self, step: int) -> bool:
    """Whether to end before `step`; to be asked once at each."""
    return self._asked or multihost_utils.reached_preemption_sync_point(step)

  def __exit__(self, *_):
    for number, before in self._before.items():
      signal.signal(number, before)


@contextlib.contextmanager
def _alone_in(workdir):
  """A folder is one run's, and one process writes there."""
  if not distributed.is_first():
    yield
    return
  workdir.mkdir(parents=True, exist_ok=True)
  files.refuse_strange(workdir)
  try:
    with filelock.FileLock(workdir / ".lock", timeout=0):
      yield
  except filelock.Timeout as e:
    raise UserError(
      f"another process is training in {workdir}; wait for its end, or name another --workdir"
    ) from e


def train(
  run: Run, *, on_evaluate: OnEvaluate | None = None, profile: bool = False
) -> dict[str, float]:
  """Trains to `config.steps`, or until `checkpoint.patience` is used up, going on from the folder's
  last checkpoint where there is one.

  Args:
    run: the config and the folder.
    on_evaluate: evaluates at the steps that it wants; nothing where None.
    profile: whether to write a trace of a few steps to `profile/`.

  Returns:
    The measures of the last evaluation.

  Raises:
    UserError: for what the user can mend.
    FloatingPointError: where the loss is not finite; the state from before that batch is saved.
  """
  config, workdir = run.config, run.workdir
  with _alone_in(workdir), jax.set_mesh(run.mesh), _Stop() as stop:
    if config.steps:
      run.check_accumulation()
    going_on.keep(run.requested, config, workdir)
    with checkpoint.open_manager(workdir / "checkpoints", keep=config.checkpoint.keep) as manager:
      start, state, frozen = _begin(run, manager)
      log = MetricsLog(workdir, start, config.steps, run.streams.batch_size)
      with contextlib.closing(log):
        log.say(_greeting(run, start))
        return _Loop(run, manager, log, stop, on_evaluate or _Nothing()).go(
          start, state, frozen, profile
        )


def _begin(run: Run, manager) -> tuple[int, TrainState, Variables]:
  """(step, state, what is frozen): from the folder, or fresh; what is frozen is written before the first checkpoint."""
  restored = checkpoint.restore_latest(manager, run.state_shapes, quarantine_corrupt=True)
  some_frozen = bool(run.roles.frozen)
  if restored is None:
    state, frozen = run.fresh()
    if some_frozen:
      checkpoint.save_frozen(run.workdir, frozen)
    return 0, state, frozen
  # a folder of schema 1, whose checkpoints hold it too
  if some_frozen and not checkpoint.has_frozen(run.workdir):
    checkpoint.save_frozen(run.workdir, run.frozen_in_checkpoint())
  return *restored, run.stored_frozen() if some_frozen else run.frozen_shapes


def compile_step(run: Run):
  """The jitted step: shardings from the run's rules, the old state's memory reused for the new."""
  shardings = lambda shapes: jax.tree.map(lambda s: s.sharding, shapes)
  function = steps.make(
    run.system,
    run.roles,
    run.players,
    steps=run.config.steps,
    seed=run.config.seed,
    accumulate=run.config.optim.accumulate,
  )
  state = shardings(run.state_shapes)
  return jax.jit(
    function,
    donate_argnums=0,
    in_shardings=(state, shardings(run.frozen_shapes), shardings(run.batch_shapes)),
    out_shardings=(state, partition.replicated(run.mesh)),
    compiler_options=xla.compiler_options(run.mesh.devices.flat[0].platform, xla.TRAINING),
  )


class _Pending:
  """A step that may still be running."""

  def __init__(self, step: int, metrics: dict[str, Any], example_ids):
    self.step, self.metrics, self.example_ids = step, metrics, example_ids


class _Loop:
  """The loop, with what stays the same from step to step."""

  def __init__(self, run: Run, manager, log: MetricsLog, stop: _Stop, on_evaluate: OnEvaluate):
    self._run, self._manager, self._log, self._stop = run, manager, log, stop
    self._evaluate = on_evaluate
    self._results: dict[str, float] = {}

  def go(self, start: int, state: TrainState, frozen: Variables, profile: bool) -> dict[str, float]:
    config, last = self._run.config, self._run.config.steps
    # A run that was stopped or killed before it evaluated its last checkpoint would miss its best.
    evaluating_again = bool(config.checkpoint.get("patience", 0))
    train_step = pending = None
    for step in range(start, last + 1):
      stopping = self._stop.at(step) and step < last
      evaluating = (
        not stopping
        and self._evaluate.due(step, last)
        and (step > start or step == last or evaluating_again)
      )
      saving = step == last or stopping or (step > start and step % config.checkpoint.every == 0)
      saving |= evaluating and bool(config.checkpoint.best)
      if pending and (evaluating or saving):
        pending = self._finish(pending, state)
      if saving:
        if not (self._run.workdir / "config.json").is_file():
          raise UserError(f"{self._run.workdir} was removed while it was trained in")
        self._log.flush()
        checkpoint.save(self._manager, step, state)
      if evaluating:
        found = self._evaluated(step, self._run.variables(state, frozen))
      ending = evaluating and step < last and self._is_out_of_patience(step)
      if ending:
        self._log.say(_why_it_ends(config, self._folder, step))
        self._evaluated(step, self._run.variables(state, frozen), before=found)
      if (saving or evaluating) and step < last and not ending:
        with self._log.paused():
          self._evaluate.write_report()
      if step == last or stopping or ending:
        break
      if train_step is None:
        train_step, data = compile_step(self._run), self._data(start, last)
      if profile:
        self._profile(step - start, state)
      batch, ids = self._next(data, pending)
      state, metrics = train_step(state, frozen, batch)
      if pending:
        self._finish(pending, state)
      pending = _Pending(step + 1, metrics, ids)
    self._manager.wait_until_finished()
    if stopping:
      self._log.say(f"stopped at step {step} of {last}, saved; the same command goes on from there")
      raise SystemExit(0)
    self._log.flush()
    self._evaluate.write_report()
    return self._results

  def _data(self, start: int, last: int):
    data = self._run.config.data
    return batches.iterate(
      self._run.batches,
      start,
      last,
      workers=data.workers,
      threads=data.threads,
      prefetch=data.prefetch,
    )

  def _next(self, data, pending: _Pending | None) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """(a batch on the devices, its examples' indices, by stream where there are several)."""
    asked = time.monotonic()
    batch, host = batches.split_host(next(data))
    if not pending or pending.metrics["finite"].is_ready():  # else the devices had work meanwhile
      self._log.waited(time.monotonic() - asked)
    ids = {name: array.tolist() for name, array in host.items() if name.endswith("example_id")}
    return self._run.on_devices(batch), ids

  def _finish(self, pending: _Pending, state: TrainState) -> None:
    """Logs a step; a loss that was not finite ends the run."""
    step, metrics, last = pending.step, pending.metrics, self._run.config.steps
    self._log.advance(step)
    if step % self._run.config.log_every == 0 or step == last or not metrics["finite"]:
      values = {f"train/{k}": v for k, v in jax.device_get(metrics).items() if k != "finite"}
      self._log.write(step, {**values, **self._log.speed(step)})
    if not metrics["finite"]:
      # The state did not move: it is the one from before this batch.
      checkpoint.save(self._manager, step - 1, state.replace(finite=jax.numpy.array(True)))
      self._manager.wait_until_finished()
      raise FloatingPointError(
        f"loss or gradients of step {step - 1} are not finite; the state before it is saved as"
        f" checkpoint {step - 1}. Its examples: {pending.example_ids}"
      )

  def _evaluated(self, step: int, variables: Variables, **how: Any) -> dict[str, float]:
    with self._log.paused():
      self._results |= (found := self._evaluate(step, variables, self._log, **how))
    self._log.write(step, found)
    best = self._run.config.checkpoint.best
    if best in found:
      higher = self._evaluate.is_higher_better(best)
      checkpoint.mark_best(self._folder, step, best, found[best], higher=higher)
    return found

  @property
  def _folder(self):
    return self._run.workdir / "checkpoints"

  def _is_out_of_patience(self, step: int) -> bool:
    """Asked where the best's measure is taken alone; all processes go by what the first reads."""
    section, last = self._run.config.checkpoint, self._run.config.steps
    if not (section.get("patience", 0) and self._evaluate.due(step, last, section.best)):
      return False
    found = checkpoint.is_out_of_patience(section, self._folder, step)
    return bool(multihost_utils.broadcast_one_to_all(np.array(found)))

  def _profile(self, done: int, state: TrainState) -> None:
    if done == PROFILED_STEPS[0]:
      jax.profiler.start_trace(self._run.workdir / "profile")
    if done == PROFILED_STEPS[1]:
      jax.block_until_ready(state)
      jax.profiler.stop_trace()


def _why_it_ends(config, folder, step: int) -> str:
  best = checkpoint.best_of(folder)
  where = f" ({best['value']:.4g}, at step {best['step']})" if best else ""
  return (
    f"ends at step {step} of {config.steps}: no better {config.checkpoint.best}{where} for"
    f" checkpoint.patience={config.checkpoint.patience} steps"
  )


def _greeting(run: Run, start: int) -> str:
  learning, frozen = (
    sum(x.size for x in jax.tree.leaves(s))
    for s in (run.state_shapes.variables["params"], run.frozen_shapes["params"])
  )
  where = f"going on at step {start} of" if start else "training for"
  return (
    f"{run.config.system.rpartition('.')[2]}, {learning + frozen:,} parameters"
    f"{f', {frozen:,} of them frozen' if frozen else ''}, {where} {run.config.steps} steps"
    f" of {run.streams.batch_size} on {len(run.mesh.devices.flat)} x"
    f" {jax.devices()[0].device_kind} ({run.workdir})"
  )
