"""Paper-style ablations: a claim, arms that differ in a few config values, seeds, measures."""

import dataclasses
import importlib.util
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from vlx.core import config as configs
from vlx.core import files
from vlx.core.errors import UserError
from vlx.evaluate import results
from vlx.evaluate.runner import Evaluation
from vlx.train import going_on, loop
from vlx.train.run import Run


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A claim, and the runs that speak for or against it.

  Attributes:
    claim: one sentence that the measures can contradict.
    config: "FILE:VARIANT" that all arms share.
    common: overrides of it for all arms, dotted name → value.
    arms: name → overrides.
    seeds: each arm is run once with each.
    measures: keys of a run's measures, "evaluator/split/measure".
  """

  claim: str
  config: str
  arms: Mapping[str, Mapping[str, Any]]
  measures: tuple[str, ...]
  seeds: tuple[int, ...] = (0, 1, 2)
  common: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def load(path: pathlib.Path) -> Experiment:
  """The EXPERIMENT of a file, here or beside the package.

  Raises:
    UserError: where there is no such file, or none in it.
  """
  spec = importlib.util.spec_from_file_location(path.stem, configs.find_file(str(path)))
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not isinstance(getattr(module, "EXPERIMENT", None), Experiment):
    raise UserError(f"{path} defines no EXPERIMENT = Experiment(…)")
  return module.EXPERIMENT


def arm_config(experiment: Experiment, arm: str, seed: int):
  """The config of one run."""
  config = configs.load_config(experiment.config)
  try:
    config.update_from_flattened_dict({**experiment.common, **experiment.arms[arm], "seed": seed})
  except (KeyError, AttributeError, TypeError, ValueError) as e:
    raise UserError(f"arm {arm!r} does not fit {experiment.config}: {e}") from e
  return config


def run_arms(experiment: Experiment, folder: pathlib.Path) -> dict[str, Any]:
  """Runs what has no results yet; the record of all, kept in `folder/results.json` from run to run.

  Returns:
    `claim`, `config`, `measures`; `runs`, each with arm, seed, its measures and what
    `vlx.evaluate.results` keeps beside them.
  """
  record = {
    "claim": experiment.claim,
    "config": experiment.config,
    "measures": list(experiment.measures),
    "runs": [],
  }
  for arm in experiment.arms:
    for seed in experiment.seeds:
      run = Run(arm_config(experiment, arm, seed), folder / arm / str(seed))
      # or complains that this run had another config
      going_on.keep(run.requested, run.config, run.workdir)
      done = run.workdir / "results.json"
      if not done.exists():
        loop.train(run, on_evaluate=Evaluation.of(run))
      found = results.read(done)
      found["measures"] = {m: found["measures"][m] for m in experiment.measures}
      record["runs"].append({"arm": arm} | found)
      files.write(folder / "results.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
  return record


def summary(record: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
  """Arm → measure → [mean, standard deviation] over its seeds; as it is told, where the runs were
  not kept.
  """
  if not record["runs"]:
    return record["summary"]
  found = {}
  for arm in dict.fromkeys(run["arm"] for run in record["runs"]):
    measures = [run["measures"] for run in record["runs"] if run["arm"] == arm]
    values = {m: [of_run[m] for of_run in measures] for m in measures[0]}
    found[arm] = {
      m: [float(np.mean(v)), float(np.std(v, ddof=len(v) > 1))] for m, v in values.items()
    }
  return found


def table(record: Mapping[str, Any]) -> str:
  """Markdown: a measure a row, an arm a column, mean ± standard deviation over seeds."""
  arms = summary(record)
  lines = ["| | " + " | ".join(arms) + " |", "|---" * (len(arms) + 1) + "|"]
  for measure in _measured(record):
    cells = [_with_spread(*arm[measure]) if measure in arm else "" for arm in arms.values()]
    lines.append(f"| {measure} | " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def _measured(record: Mapping[str, Any]) -> list[str]:
  """The measures that some arm has."""
  arms = summary(record).values()
  return [m for m in record["measures"] if any(m in arm for arm in arms)]


def _with_spread(mean: float, spread: float) -> str:
  """One digit after the point, or as many as the first that the spread has."""
  digits = max(1, -math.floor(math.log10(spread))) if spread else 1
  return f"{mean:.{digits}f} ± {spread:.{digits}f}"


PANELS = 3  # in a row


def plot(record: Mapping[str, Any], path: pathlib.Path) -> None:
  """One panel per measure: the mean a line, each seed a dot, or a bar of the standard deviation
  where the seeds are not known one by one.
  """
  measures, arms = _measured(record), summary(record)
  columns = min(len(measures), PANELS)
  rows = -(-len(measures) // columns)
  figure, axes = plt.subplots(
    rows, columns, figsize=(3 * columns, 2.6 * rows), squeeze=False, layout="constrained"
  )
  for axis in axes.flat[len(measures) :]:
    axis.set_visible(False)
  for axis, measure in zip(axes.flat, measures):
    for x, (arm, found) in enumerate(arms.items()):
      if measure not in found:
        continue
      mean, spread = found[measure]
      seeds = [r["measures"][measure] for r in record["runs"] if r["arm"] == arm]
      axis.hlines(mean, x - 0.25, x + 0.25, color="#333333")
      axis.errorbar([x], [mean], [0 if seeds else spread], color="#4575b4", capsize=4)
      axis.plot([x] * len(seeds), seeds, "o", color="#4575b4", alpha=0.7)
    axis.set_xticks(range(len(arms)), list(arms), fontsize=8)
    axis.set_title(measure, fontsize=8)
    axis.set_xlim(-0.5, len(arms) - 0.5)
  figure.savefig(path, dpi=110)
  plt.close(figure)
