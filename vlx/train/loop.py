"""The one training loop.

Order of a step (the state that is evaluated and saved is always the one *before* the batch):

  evaluate → save → batch → step → log the step before, whose numbers are ready by then
"""

import contextlib
import signal
import time

import jax
from jax.experimental import multihost_utils

from vlx.data import batches
from vlx.evaluate import runner as evaluators
from vlx.evaluate.report import page as report
from vlx.train import step as steps
from vlx.core import checkpoint
from vlx.core import partition
from vlx.train.logging import MetricsLog
from vlx.train.run import Run

PROFILED_STEPS = (10, 15)  # after the first, which compile and fill caches


class _Stop:
  """Remembers that SIGTERM came; the loop ends at the next step.

  Of many processes any may get it. JAX's preemption service, which has the signal then, tells the
  others, and all agree on the step.
  """

  def __init__(self):
    self._asked = False

  def __enter__(self):
    if jax.process_count() == 1:
      self._before = signal.signal(signal.SIGTERM, self._ask)
    return self

  def _ask(self, *_):
    self._asked = True

  def at(self, step: int) -> bool:
    """Whether to end before `step`; to be asked once at each."""
    return self._asked or multihost_utils.reached_preemption_sync_point(step)

  def __exit__(self, *_):
    if jax.process_count() == 1:
      signal.signal(signal.SIGTERM, self._before)


def train(run: Run, *, profile: bool = False) -> dict[str, float]:
  """Trains to `config.steps`, going on from the folder's last checkpoint where there is one.

  Args:
    run: the config and the folder.
    profile: whether to write a trace of a few steps to `profile/`.

  Returns:
    The results of the last evaluation (also in results.json).

  Raises:
    UserError: for what the user can mend.
    FloatingPointError: where the loss is not finite; the state from before that batch is saved.
  """
  config, workdir = run.config, run.workdir
  run.save_config()
  with jax.set_mesh(run.mesh), checkpoint.open_manager(
      workdir / "checkpoints", keep=config.checkpoint.keep, best=config.checkpoint.best
  ) as manager, _Stop() as stop:
    restored = checkpoint.restore_latest(manager, run.state_shapes, put_aside=True)
    start, state = restored if restored else (0, run.fresh_state())
    train_step = compile_step(run)
    log = MetricsLog(workdir, start, config.steps, config.data.batch_size)
    with contextlib.closing(log):
      log.say(_greeting(run, start))
      return _loop(run, state, start, train_step, manager, log, stop, profile)


def compile_step(run: Run):
  """The jitted step: shardings from the run's rules, the old state's memory reused for the new."""
  shardings = jax.tree.map(lambda s: s.sharding, run.state_shapes)
  batch = jax.tree.map(lambda s: s.sharding, run.batch_shapes)
  function = steps.make(
      run.system, run.optimizer, run.config.optim, run.config.steps, run.config.seed
  )
  return jax.jit(
      function, donate_argnums=0, in_shardings=(shardings, batch),
      out_shardings=(shardings, partition.replicated(run.mesh)),
  )


def _loop(run, state, start, train_step, manager, log, stop, profile):
  config, last = run.config, run.config.steps
  sharding = partition.batch_sharding(run.mesh)
  rows = config.data.batch_size
  data = run.batches.iterate(
      start, last, workers=config.data.workers, threads=config.data.threads, ahead=config.data.ahead
  )
  pending = None  # (step, metrics, example ids) of the step that may still be running
  results = {}

  def finish(pending):
    step, metrics, example_ids = pending
    log.advance(step)
    if step % config.log_every == 0 or step == last or not metrics["finite"]:
      values = {f"train/{k}": v for k, v in jax.device_get(metrics).items() if k != "finite"}
      log.write(step, {**values, **log.speed(step)})
    if not metrics["finite"]:
      # The state did not move: it is the one from before this batch.
      checkpoint.save(manager, step - 1, state.replace(finite=jax.numpy.array(True)), {})
      manager.wait_until_finished()
      raise FloatingPointError(
          f"loss or gradients of step {step - 1} are not finite; the state before it is saved as"
          f" checkpoint {step - 1}. Its examples: {example_ids.tolist()}"
      )

  for step in range(start, last + 1):
    stopping = stop.at(step) and step < last
    evaluating = step == last or (step > start and step % config.eval_every == 0 and not stopping)
    saving = step == last or stopping or (step > start and step % config.checkpoint.every == 0)
    if pending and (evaluating or saving):
      finish(pending)
      pending = None
    if evaluating:
      with log.paused():
        results = evaluators.evaluate(run, state.for_inference, pictures=step == last)
      log.write(step, results)
      log.say(evaluators.table(results, config.baselines, f"step {step}"))
    if saving:
      log.flush()
      checkpoint.save(manager, step, state, results if evaluating else {})
    if (saving or evaluating) and step < last:
      with log.paused():
        report.write(run)
    if step == last or stopping:
      break
    if profile and step - start == PROFILED_STEPS[0]:
      jax.profiler.start_trace(run.workdir / "profile")
    asked = time.monotonic()
    batch, host = batches.split_host(next(data))
    if not pending or pending[1]["loss"].is_ready():  # else the devices had work meanwhile
      log.waited(time.monotonic() - asked)
    state, metrics = train_step(state, partition.to_devices(batch, sharding, rows))
    if pending:
      finish(pending)
    pending = (step + 1, metrics, host["example_id"])
    if profile and step - start == PROFILED_STEPS[1]:
      jax.block_until_ready(state)
      jax.profiler.stop_trace()
  manager.wait_until_finished()
  if stopping:
    log.say(f"stopped at step {step} of {last}, saved; the same command goes on from there")
    raise SystemExit(0)
  evaluators.write_results(run, results)
  report.write(run)
  log.say(f"{run.workdir}/report.html: what was trained, the figures, pictures to look at")
  return results


def _greeting(run: Run, start: int) -> str:
  count = sum(x.size for x in jax.tree.leaves(run.params_shapes))
  where = f"going on at step {start} of" if start else "training for"
  return (
      f"{run.config.system.rpartition('.')[2]}, {count:,} parameters, {where} {run.config.steps} steps"
      f" of {run.config.data.batch_size} on {len(run.mesh.devices.flat)} x"
      f" {jax.devices()[0].device_kind} ({run.workdir})"
  )
