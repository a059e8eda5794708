"""Runs the evaluators that a config lists.

An evaluator is a frozen dataclass, called with (model, data), that returns `Results`;
`config.evaluators` names its class under `type` and gives its fields. `every` says after how many
steps it runs, 0 only at the end.
"""

import dataclasses
import fnmatch
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from vlx.core import capabilities, distributed, files
from vlx.core import config as configs
from vlx.core.errors import UserError
from vlx.core.system import System, Variables
from vlx.data.tokenizers import Tokenizer
from vlx.evaluate import results
from vlx.evaluate.data import Data
from vlx.evaluate.report import page
from vlx.evaluate.results import Results
from vlx.model import Model


class Evaluator(Protocol):
  """A frozen dataclass; `requires` and `better` belong to its class."""

  requires: tuple[type, ...]  # capabilities of the system
  better: Mapping[str, str]  # the last part of a measure's name, a pattern → "higher" or "lower"
  splits: tuple[str, ...]
  every: int

  def __call__(self, model: Model, data: Data) -> Results: ...


@runtime_checkable
class Checks(Protocol):
  """An evaluator that needs more than model and data."""

  def check(self, data: Data, mesh: jax.sharding.Mesh) -> None:
    """Raises `UserError` where that is not there."""


def build(section: Mapping[str, Any], where: str) -> Evaluator:
  """The evaluator of a section of the config."""
  fields = dict(section)
  if "type" not in fields:
    raise UserError(f"{where} has no type: the import path of an evaluator")
  return configs.build(configs.import_path(fields.pop("type")), fields, where)


def direction(evaluators: Mapping[str, Evaluator], key: str) -> str | None:
  """Whether "evaluator/split/measure" is better "higher" or "lower"; None where nobody says."""
  name, _, measure = key.partition("/")
  if name not in evaluators:
    return None
  last = measure.rpartition("/")[2]
  better = evaluators[name].better.items()
  return next((found for pattern, found in better if fnmatch.fnmatch(last, pattern)), None)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """All of a run's evaluators, checked before the first step; what `vlx.train.loop` calls."""

  evaluators: Mapping[str, Evaluator]
  model: Model  # without variables, which come at each step
  data: Data
  workdir: pathlib.Path
  config: Any  # resolved

  @classmethod
  def of(cls, run: Any) -> "Evaluation":
    """From a run: its `config`, `system`, `tokenizer`, `mesh` and `workdir`.

    Raises:
      UserError: as `from_parts`, and where nothing measures by what the run is to end early.
    """
    made = cls.from_parts(run.config, run.system, run.tokenizer, run.mesh, run.workdir)
    if run.config.checkpoint.get("patience", 0):
      made.check_patience(run.config.checkpoint.best)
    return made

  @classmethod
  def from_parts(
    cls,
    config: Any,
    system: System,
    tokenizer: Tokenizer | None,
    mesh: jax.sharding.Mesh,
    workdir: pathlib.Path,
  ) -> "Evaluation":
    """From the objects that a config makes.

    Raises:
      UserError: where an evaluator asks for what the system cannot do, for a split that is not
        there, or for another model that cannot be opened.
    """
    sections = config.evaluators.to_dict()
    evaluators = {name: build(sections[name], f"evaluators.{name}") for name in sorted(sections)}
    data = Data(
      config.data.source, tokenizer, config.data.image_transform, config.data.max_bad_records
    )
    for name, evaluator in evaluators.items():
      capabilities.require(system, *evaluator.requires, what=f"evaluators.{name}")
      for split in evaluator.splits:
        data.source(split)
    for evaluator in evaluators.values():
      if isinstance(evaluator, Checks):
        evaluator.check(data, mesh)
    return cls(
      evaluators,
      Model(system, {}, tokenizer, config.data.image_transform, mesh),
      data,
      workdir,
      config,
    )

  def check_patience(self, best: str) -> None:
    """Raises `UserError` where no measure `best` is taken before the end."""
    name = best.partition("/")[0]
    if not best:
      raise UserError("checkpoint.patience needs checkpoint.best, the measure that is waited for")
    self.is_higher_better(best)
    if not self.evaluators[name].every:
      raise UserError(
        f"checkpoint.patience waits for {best}, which is measured at the end alone; set evaluators.{name}.every"
      )

  def due(self, step: int, last: int, measure: str = "") -> bool:
    """Whether any evaluator runs at a step, or the one that takes a measure."""
    name = measure.partition("/")[0]
    asked = [e for n, e in self.evaluators.items() if not measure or n == name]
    return any(self._is_due(e, step, last) for e in asked)

  def _is_due(self, evaluator: Evaluator, step: int, last: int) -> bool:
    return step == last or bool(step and evaluator.every and step % evaluator.every == 0)

  def __call__(
    self, step: int, variables: Variables, log: Any, *, before: Mapping[str, float] | None = None
  ) -> dict[str, float]:
    """Evaluates what is due; writes figures, and at the end results.json.

    With `before`, measures of this step, the end is here: all evaluators run that are not in it.
    """
    last = self.config.steps if before is None else step
    before = before or {}
    had = {key.partition("/")[0] for key in before}
    due = {n: e for n, e in self.evaluators.items() if n not in had and self._is_due(e, step, last)}
    measures, figures = evaluate(
      due, dataclasses.replace(self.model, variables=variables), self.data, log.say
    )
    for name, figure in figures.items():
      log.figure(step, name, figure)
    save_figures(figures, self.workdir)
    if measures:
      log.say(table(measures, self.config.baselines, f"step {step}"))
    if step == last:
      self.write_results({**before, **measures}, step)
    return measures

  def write_results(self, measures: Mapping[str, float], step: int | None = None) -> None:
    """results.json of the run's folder; without `step`, of the last one that the log has."""
    steps = files.read_steps(self.workdir / "metrics.jsonl")
    if step is None:
      step = max((line["step"] for line in steps), default=self.config.steps)
    results.write(
      self.workdir / "results.json",
      measures,
      seed=self.config.seed,
      steps=step,
      training_seconds=round(sum(line.get("seconds", 0.0) for line in steps), 1),
    )

  def is_higher_better(self, measure: str) -> bool:
    """Whether a higher value is better, for a measure that `checkpoint.best` names.

    Raises:
      UserError: where no evaluator has it, or says which is better.
    """
    found = direction(self.evaluators, measure)
    if found is None:
      raise UserError(f"checkpoint.best: no evaluator says whether a higher {measure!r} is better")
    return found == "higher"

  def write_report(self) -> None:
    page.write(
      self.workdir,
      self.config,
      self.model.system,
      directions=lambda key: direction(self.evaluators, key),
    )
    if distributed.is_first() and (self.workdir / "results.json").is_file():
      print(
        f"{self.workdir}/report.html: what was trained, the figures, images to look at", flush=True
      )


def evaluate(
  evaluators: Mapping[str, Evaluator], model: Model, data: Data, say: Any = lambda text: None
) -> tuple[dict[str, float], dict[str, Figure]]:
  """("evaluator/split/measure" → number, name → figure), of all of them; `say` is told of each one's beginning."""
  measures, figures = {}, {}
  with jax.set_mesh(model.mesh):
    for name, evaluator in evaluators.items():
      say(f"evaluating {name} on {', '.join(evaluator.splits)}")
      found = evaluator(model, data)
      measures |= {f"{name}/{key}": float(value) for key, value in found.measures.items()}
      figures |= found.figures
  return measures, figures


def save_figures(figures: Mapping[str, Figure], workdir: pathlib.Path) -> None:
  """`figures/NAME.png` of the run's folder, each in place of the one before."""
  for name, figure in figures.items():
    if distributed.is_first():
      files.write(workdir / "figures" / f"{files.safe_name(name)}.png", page.to_png(figure))
    plt.close(figure)


def table(measures: Mapping[str, float], baselines: Mapping[str, float], title: str) -> str:
  """Lines "evaluator/split: measure value (baseline), …" for the terminal."""
  lines: dict[str, list[str]] = {}
  for key, value in measures.items():
    group, measure = key.rsplit("/", 1)
    beside = f" (baseline {page.number(baselines[key])})" if key in baselines else ""
    lines.setdefault(group, []).append(f"{measure} {page.number(value)}{beside}")
  return "\n".join([title, *(f"  {group}: {', '.join(found)}" for group, found in lines.items())])
