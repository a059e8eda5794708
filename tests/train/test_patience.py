"""A run that ends once its best is `checkpoint.patience` steps old."""

import dataclasses
import json

import pytest

from tests import contract
from vlx.core import config as configs
from vlx.core.errors import UserError
from vlx.core.files import read_steps
from vlx.evaluate.results import Results
from vlx.evaluate.runner import Evaluation
from vlx.train import defaults, loop
from vlx.train.run import Run

BEST = "main/val/error"


@dataclasses.dataclass(frozen=True)
class Told:
  """Measures what the test says, one value after another."""

  label: str
  every: int = 0

  requires = ()
  better = {"error": "lower"}
  splits = ()
  values = {}  # label → what is to come

  def __call__(self, model, data):
    return Results({"val/error": self.values[self.label].pop(0)})


@pytest.fixture(scope="module", autouse=True)
def shared_steps():
  with contract.shared_steps():
    yield


def config(**changes):
  found = defaults.get_config()
  found.system, found.model = "tests.train.toys.Scaler", dict(width=3, depth=2)
  found.data.update(
    dict(source="tests.train.toys.Numbers:32", batch_size=8, preprocess='keep("x", "y")')
  )
  found.steps, found.log_every = 12, 3
  found.optim.update(dict(lr=0.1, schedule="constant", rules=()))
  found.checkpoint.update(dict(best=BEST, patience=4))
  told = f"{__name__}.Told"
  found.evaluators = dict(
    main=dict(type=told, label="main", every=2), other=dict(type=told, label="other")
  )
  found.update_from_flattened_dict(changes)
  return configs.finalize(found)


def trained(workdir, monkeypatch, main, other, **changes):
  """(the results, what was said, the steps that were trained)."""
  monkeypatch.setattr(Told, "values", {"main": list(main), "other": list(other)})
  said, steps = [], []
  with monkeypatch.context() as m:
    m.setattr(loop.MetricsLog, "say", lambda self, text: said.append(text))
    finish = loop._Loop._finish
    m.setattr(
      loop._Loop, "_finish", lambda self, p, state: steps.append(p.step) or finish(self, p, state)
    )
    run = Run(config(**changes), workdir)
    results = loop.train(run, on_evaluate=Evaluation.of(run))
  assert not any(Told.values.values())  # no evaluator ran less than it was to
  return results, "\n".join(said), steps


def checkpoints(workdir):
  return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def test_a_run_ends_when_its_best_is_old_as_it_would_at_its_last_step(tmp_path, monkeypatch):
  """Best at step 4, so at 8; the evaluator of the end alone runs too, and the other once."""
  results, said, steps = trained(tmp_path / "run", monkeypatch, [3.0, 1.0, 2.0, 1.0], [7.0])
  assert steps == list(range(1, 9)) and checkpoints(tmp_path / "run") == [4, 8]
  assert results == {BEST: 1.0, "other/val/error": 7.0}
  assert f"ends at step 8 of 12: no better {BEST} (1, at step 4)" in said
  kept = json.loads((tmp_path / "run" / "results.json").read_text())
  assert kept["measures"] == results and kept["steps"] == 8
  assert (
    read_steps(tmp_path / "run" / "metrics.jsonl")[-1].items() >= {"step": 8, **results}.items()
  )
  page = (tmp_path / "run" / "report.html").read_text()
  assert f"Ended early, by {BEST}" in page and "Not finished" not in page
  # Started again it says so, evaluates as any finished run does, and trains no step.
  again, said, steps = trained(tmp_path / "run", monkeypatch, [1.0], [7.0])
  assert not steps and again == results and "ends at step 8 of 12" in said
  # With more patience it goes on: 8 is evaluated again, then 10 and 12.
  _, _, steps = trained(
    tmp_path / "run", monkeypatch, [1.0, 1.0, 2.0], [6.0], **{"checkpoint.patience": 12}
  )
  assert steps == [9, 10, 11, 12]


def test_a_better_measure_at_the_last_moment_lets_the_run_go_on(tmp_path, monkeypatch):
  main = [1.0, 2.0, 0.5, 3.0, 3.0]  # 6 is better than 2
  _, said, steps = trained(tmp_path, monkeypatch, main, [7.0])
  assert steps[-1] == 10 and "ends at step 10" in said


def test_patience_runs_on_over_a_stop_whether_or_not_its_step_was_evaluated(tmp_path, monkeypatch):
  """The run of the first test, stopped and started again."""
  values = {2: 3.0, 4: 1.0, 6: 2.0, 8: 1.0}
  for stop in (4, 5, 8):
    workdir = tmp_path / str(stop)
    with monkeypatch.context() as m, pytest.raises(SystemExit):
      m.setattr(loop._Stop, "at", lambda self, step, stop=stop: step == stop)
      trained(workdir, monkeypatch, [v for s, v in values.items() if s < stop], [])
    main = [v for s, v in values.items() if s >= stop]
    _, said, steps = trained(workdir, monkeypatch, main, [7.0])
    assert steps == list(range(stop + 1, 9)) and "ends at step 8" in said


def test_without_patience_all_steps_are_trained(tmp_path, monkeypatch):
  main = [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
  _, _, steps = trained(tmp_path, monkeypatch, main, [7.0], **{"checkpoint.patience": 0})
  assert steps[-1] == 12


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"checkpoint.best": ""}, "checkpoint.patience needs checkpoint.best"),
    ({"checkpoint.best": "none/val/error"}, "no evaluator says whether"),
    ({"checkpoint.best": "other/val/error"}, "set evaluators.other.every"),
    ({"checkpoint.patience": -1}, "checkpoint.patience must be at least 0"),
  ],
)
def test_patience_for_nothing_is_refused(tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    Evaluation.of(Run(config(**changes), tmp_path))


def test_a_folder_from_before_patience_goes_on(tmp_path, monkeypatch):
  trained(tmp_path, monkeypatch, [1.0], [7.0], **{"checkpoint.patience": 0, "steps": 2})
  kept = json.loads((tmp_path / "config.json").read_text())
  for name in ("requested", "resolved"):
    del kept[name]["checkpoint"]["patience"]
  (tmp_path / "config.json").write_text(json.dumps(kept))
  _, said, steps = trained(tmp_path, monkeypatch, [1.0, 2.0, 2.0], [7.0])
  assert steps == [3, 4, 5, 6] and "ends at step 6" in said
