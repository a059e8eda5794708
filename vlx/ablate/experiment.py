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
from vlx.core.errors import UserError
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
    measures: keys of results.json.
  """

  claim: str
  config: str
  arms: Mapping[str, Mapping[str, Any]]
  measures: tuple[str, ...]
  seeds: tuple[int, ...] = (0, 1, 2)
  common: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def load(path: pathlib.Path) -> Experiment:
  """The EXPERIMENT of a file.

  Raises:
    UserError: where there is no such file, or none in it.
  """
  if not path.is_file():
    raise UserError(f"no experiment file {path}")
  spec = importlib.util.spec_from_file_location(path.stem, path)
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


def run_arms(experiment: Experiment, folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Arm → measures `[seeds, measures]`, running what has no results yet."""
  values = {}
  for arm in experiment.arms:
    rows = []
    for seed in experiment.seeds:
      run = Run(arm_config(experiment, arm, seed), folder / arm / str(seed))
      # or complains that this run had another config
      going_on.keep(run.requested, run.config, run.workdir)
      done = run.workdir / "results.json"
      if not done.exists():
        loop.train(run, on_evaluate=Evaluation.of(run))
      results = json.loads(done.read_text())
      rows.append([results[m] for m in experiment.measures])
    values[arm] = np.array(rows)
  return values


def table(experiment: Experiment, values: Mapping[str, np.ndarray]) -> str:
  """Markdown: an arm a row, a measure a column, mean ± standard deviation over seeds."""
  lines = [
    f"Claim: {experiment.claim}",
    "",
    f"`{experiment.config}`, {len(experiment.seeds)} seeds; mean ± standard deviation.",
    "",
    "| arm | " + " | ".join(experiment.measures) + " |",
    "|---" * (len(experiment.measures) + 1) + "|",
  ]
  for arm, runs in values.items():
    cells = [_with_spread(m, s) for m, s in zip(runs.mean(0), runs.std(0, ddof=len(runs) > 1))]
    lines.append(f"| {arm} | " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def _with_spread(mean: float, spread: float) -> str:
  """One digit after the point, or as many as the first that the spread has."""
  digits = max(1, -math.floor(math.log10(spread))) if spread else 1
  return f"{mean:.{digits}f} ± {spread:.{digits}f}"


def plot(experiment: Experiment, values: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
  """One panel per measure: each seed a dot, the mean a line."""
  count = len(experiment.measures)
  figure, axes = plt.subplots(1, count, figsize=(3 * count, 3), squeeze=False, layout="constrained")
  for i, (axis, measure) in enumerate(zip(axes[0], experiment.measures)):
    for x, runs in enumerate(values.values()):
      axis.plot([x] * len(runs), runs[:, i], "o", color="#4575b4", alpha=0.7)
      axis.hlines(runs[:, i].mean(), x - 0.25, x + 0.25, color="#333333")
    axis.set_xticks(range(len(values)), list(values), fontsize=7)
    axis.set_title(measure, fontsize=7)
    axis.set_xlim(-0.5, len(values) - 0.5)
  figure.savefig(path, dpi=110)
  plt.close(figure)
