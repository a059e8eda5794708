"""python -m vlx.evaluate --workdir=runs/clip [--config=configs/clip.py:emoji]
python -m vlx.evaluate --model=DIR --data=folder:PATH [--split=val]

Runs the evaluators of a run's config on its last checkpoint, or those of --config; writes results.json,
samples/ and report.html. Or prints the zero-shot and retrieval figures of a public CLIP on any data.
"""

import jax
import ml_collections
from absl import flags

from vlx import cli, pretrained
from vlx.core import distributed
from vlx.core.errors import UserError
from vlx.evaluate import public
from vlx.evaluate import runner as evaluators
from vlx.evaluate.report import page as report
from vlx.core import checkpoint
from vlx.core import partition
from vlx.train.run import Run, open_run

PROCESSES = distributed.define_flags()
CONFIG = cli.define_config_flag()
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")
MODEL = flags.DEFINE_string("model", None, "A public CLIP: what vlx.pretrained.load takes.")
DATA = flags.DEFINE_string("data", None, "What to measure it on: KIND:PLACE, e.g. folder:PATH.")
SPLIT = flags.DEFINE_string("split", "val", "Of the data.")


def main():
  if (WORKDIR.value is None) == (MODEL.value is None):
    raise UserError("give --workdir=DIR, or --model=DIR with --data=folder:PATH")
  if (MODEL.value is None) != (DATA.value is None):
    raise UserError("--model and --data go together")
  if MODEL.value is not None and CONFIG.value is not None:
    raise UserError("--config goes with --workdir")
  distributed.join(*(flag.value for flag in PROCESSES))
  if MODEL.value is not None:
    measure_public(MODEL.value, DATA.value, SPLIT.value)
  else:
    evaluate_run(WORKDIR.value)


def measure_public(name: str, data: str, split: str):
  mesh = partition.make_mesh(dict(data=-1, fsdp=1, tensor=1))
  results = public.measure(pretrained.load(name, mesh=mesh), data, split, mesh)
  if distributed.is_first():
    print(evaluators.table(results, {}, f"{name} on {data}"))


def evaluate_run(workdir: str):
  run = open_run(workdir)
  if CONFIG.value is not None:
    run = with_evaluators(run, CONFIG.value)
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


def with_evaluators(run: Run, config: ml_collections.ConfigDict) -> Run:
  """The run with the evaluators and baselines of another config, which must be of the same system."""
  if config.system != run.config.system:
    raise UserError(f"--config is of a {config.system}, and {run.workdir} holds a {run.config.system}")
  changed = run.config.to_dict()
  for section in ("evaluators", "baselines"):
    changed[section] = config[section].to_dict()
  return Run(ml_collections.ConfigDict(changed).lock(), run.workdir)


if __name__ == "__main__":
  cli.run(main)
