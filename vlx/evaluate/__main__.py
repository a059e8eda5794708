"""python -m vlx.evaluate --workdir=runs/clip

Runs the evaluators of a run's config on its last checkpoint; writes results.json, samples/ and
report.html.
"""

import jax
from absl import flags

from vlx import cli, distributed
from vlx.errors import UserError
from vlx.evaluate import evaluators, report
from vlx.train import checkpoint
from vlx.train.run import open_run

PROCESSES = distributed.define_flags()
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")


def main():
  if WORKDIR.value is None:
    raise UserError("give --workdir=DIR")
  distributed.join(*(flag.value for flag in PROCESSES))
  run = open_run(WORKDIR.value)
  with jax.set_mesh(run.mesh), checkpoint.open_manager(
      run.workdir / "checkpoints", read_only=True
  ) as manager:
    restored = checkpoint.restore_latest(manager, run.state_shapes)
    if restored is None:
      raise UserError(f"{run.workdir} holds no checkpoint yet")
    step, state = restored
    results = evaluators.evaluate(run, state.for_inference, pictures=True)
  evaluators.write_results(run, results)
  page = report.write(run)
  if distributed.is_first():
    print(evaluators.table(results, run.config.baselines, f"step {step}"), page, sep="\n")


if __name__ == "__main__":
  cli.run(main)
