"""Runs the evaluators that a config lists.

An evaluator is a frozen dataclass, called with (run, variables, draw=…), that returns flat measures
"split/measure" → number; `config.evaluators` names its class under `type` and gives its fields.
"""

import json
from collections.abc import Mapping

from vlx.core import config as configs
from vlx.core import distributed
from vlx.core import files
from vlx.train.run import Run


def evaluate(run: Run, variables, *, pictures: bool) -> dict[str, float]:
  """`evaluator/split/measure` → number, of all the config's evaluators.

  Args:
    run: the run.
    variables: of its system.
    pictures: whether to draw samples too.
  """
  results = {}
  for name, section in sorted(run.config.evaluators.items()):
    fields = section.to_dict()
    evaluator = configs.build(
        configs.import_path(fields.pop("type")), fields, f"evaluators.{name}"
    )
    for key, value in evaluator(run, variables, draw=pictures).items():
      results[f"{name}/{key}"] = value
  return results


def write_results(run: Run, results: Mapping[str, float]) -> None:
  """results.json of the run's folder."""
  if distributed.is_first():
    files.write(
        run.workdir / "results.json", json.dumps(dict(results), indent=2, sort_keys=True) + "\n"
    )


def table(results: Mapping[str, float], baselines: Mapping[str, float], title: str) -> str:
  """Lines "evaluator/split: measure value (baseline), …" for the terminal."""
  lines: dict[str, list[str]] = {}
  for key, value in results.items():
    group, measure = key.rsplit("/", 1)
    beside = f" (baseline {number(baselines[key])})" if key in baselines else ""
    lines.setdefault(group, []).append(f"{measure} {number(value)}{beside}")
  return "\n".join([title, *(f"  {group}: {', '.join(found)}" for group, found in lines.items())])


def number(value: float) -> str:
  """With one decimal, where it is below one with three digits."""
  return f"{value:.1f}" if abs(value) >= 1 or not value else f"{value:.3g}"
