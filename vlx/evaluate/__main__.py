"""python -m vlx.evaluate --workdir=runs/clip [--config=configs/clip.py:emoji]
python -m vlx.evaluate --model=MODEL --data=folder:PATH [--split=val]

Runs the evaluators of a run's config on its last checkpoint, or those of --config; writes
results.json, figures/ and report.html. Or prints what can be measured of any model, a run or a
public checkpoint, on any data.
"""

import pathlib

import ml_collections
from absl import flags

import vlx
from vlx import cli
from vlx.core import config as configs
from vlx.core import distributed, files, trust
from vlx.core.errors import UserError
from vlx.evaluate import runner
from vlx.evaluate.measure import measure_on
from vlx.evaluate.report import page

PROCESSES = distributed.define_flags()
CONFIG = cli.define_config_flag()
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")
MODEL = flags.DEFINE_string(
  "model", None, "A public checkpoint, or a run beside other data: what vlx.load takes."
)
DATA = flags.DEFINE_string("data", None, "What to measure it on: KIND:PATH, e.g. folder:PATH.")
SPLIT = flags.DEFINE_string("split", "val", "Of the data.")


def main():
  if (WORKDIR.value is None) == (MODEL.value is None):
    raise UserError("give --workdir=DIR, or --model=MODEL with --data=folder:PATH")
  if (MODEL.value is None) != (DATA.value is None):
    raise UserError("--model and --data go together")
  if MODEL.value is not None and CONFIG.value is not None:
    raise UserError("--config goes with --workdir")
  distributed.join(*(flag.value for flag in PROCESSES))
  if MODEL.value is not None:
    model = vlx.load(MODEL.value)
    results = measure_on(model, DATA.value, SPLIT.value, say=_say)
    _say(runner.table(results, {}, f"{MODEL.value} on {DATA.value}"))
  else:
    evaluate_run(pathlib.Path(WORKDIR.value).expanduser())


def _say(text: str) -> None:
  if distributed.is_first():
    print(text, flush=True)


def evaluate_run(workdir: pathlib.Path) -> None:
  """Evaluates a run on the devices that are there; its folder needs no other."""
  if CONFIG.value is not None:
    trust.trust_named(CONFIG.value.to_dict())
  config = configs.read(workdir).resolved
  files.refuse_strange(workdir)
  if CONFIG.value is not None:
    config = with_evaluators(config, CONFIG.value, workdir)
  model = vlx.load(workdir)
  evaluation = runner.Evaluation.from_parts(
    config, model.system, model.tokenizer, model.mesh, workdir
  )
  measures, figures = runner.evaluate(evaluation.evaluators, model, evaluation.data, _say)
  runner.save_figures(figures, workdir)
  evaluation.write_results(measures)
  _say(runner.table(measures, config.baselines, str(workdir)))
  directions = lambda key: runner.direction(evaluation.evaluators, key)
  _say(str(page.write(workdir, config, model.system, directions=directions)))


def with_evaluators(
  config: ml_collections.ConfigDict, other: ml_collections.ConfigDict, workdir: pathlib.Path
) -> ml_collections.ConfigDict:
  """A run's config with the evaluators and baselines of another, which must be of the same
  system.
  """
  if other.system != config.system:
    raise UserError(f"--config is of a {other.system}, and {workdir} holds a {config.system}")
  changed = config.to_dict() | {name: other[name].to_dict() for name in ("evaluators", "baselines")}
  return ml_collections.ConfigDict(changed).lock()


if __name__ == "__main__":
  cli.run(main)
