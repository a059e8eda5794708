"""Experiments: arms, seeds, what is done is not done again."""

import json
import pathlib

import numpy as np
import pytest

from vlx.ablate import experiment as experiments
from vlx.ablate.experiment import Experiment
from vlx.core.errors import UserError
from vlx.evaluate import results

MEASURE = "retrieval/combo/image_to_text_r5"


def small(**changes):
  fields = dict(
    claim="A claim.",
    config="configs/clip.py:smoke",
    common={"steps": 2},
    arms={"cosine": {}, "inner_product": {"model.similarity_type": "inner_product"}},
    measures=(MEASURE,),
    seeds=(0, 1),
  )
  return Experiment(**{**fields, **changes})


def test_arms_with_results_are_not_run_again(tmp_path, monkeypatch):
  trained = []

  def train(run, on_evaluate):
    trained.append((run.config.seed, run.config.model.similarity_type))
    value = 10.0 * run.config.seed + (run.config.model.similarity_type == "inner_product")
    results.write(
      run.workdir / "results.json", {MEASURE: value, "other": 0.0}, seed=run.config.seed
    )

  monkeypatch.setattr(experiments.loop, "train", train)
  monkeypatch.setattr(experiments.Evaluation, "of", lambda run: None)
  experiment = small()
  record = experiments.run_arms(experiment, tmp_path)
  found = {(r["arm"], r["seed"]): r["measures"] for r in record["runs"]}
  assert found["cosine", 1] == {MEASURE: 10.0} and found["inner_product", 1] == {MEASURE: 11.0}
  assert experiments.summary(record)["inner_product"][MEASURE] == [6.0, np.std([1, 11], ddof=1)]
  assert json.loads((tmp_path / "results.json").read_text()) == record
  assert len(trained) == 4
  experiments.run_arms(experiment, tmp_path)
  assert len(trained) == 4
  (tmp_path / "inner_product" / "1" / "results.json").unlink()
  experiments.run_arms(experiment, tmp_path)
  assert len(trained) == 5
  with pytest.raises(UserError, match="another config"):
    experiments.run_arms(small(arms={"cosine": {"model.embed_dim": 16}}), tmp_path)


def record(**values):
  """Of arms with a value for each seed."""
  runs = [{"arm": a, "measures": {MEASURE: x}} for a, found in values.items() for x in found]
  return {"claim": "A claim.", "measures": [MEASURE], "runs": runs}


def test_table_has_mean_and_standard_deviation(tmp_path):
  found = record(cosine=[1.0, 3.0], inner_product=[5.0, 5.0])
  text = experiments.table(found)
  assert "| | cosine | inner_product |" in text and f"| {MEASURE} | 2.0 ± 1.4 | 5.0 ± 0.0 |" in text
  # As many digits as the spread needs.
  assert f"| {MEASURE} | 3.12 ± 0.03 |" in experiments.table(record(cosine=[3.1, 3.14]))
  experiments.plot(found, tmp_path / "seeds.png")
  told = {"summary": experiments.summary(found), "runs": []}
  assert experiments.table(found | told) == text
  experiments.plot(found | told, tmp_path / "spread.png")
  assert all((tmp_path / name).stat().st_size > 1000 for name in ("seeds.png", "spread.png"))


def test_every_arm_of_every_experiment_fits_its_config():
  for path in pathlib.Path("experiments").glob("*.py"):
    experiment = experiments.load(path)
    for arm in experiment.arms:
      assert experiments.arm_config(experiment, arm, 0).seed == 0


def test_an_override_that_does_not_fit_is_told():
  with pytest.raises(UserError, match="arm 'x' does not fit"):
    experiments.arm_config(small(arms={"x": {"model.embed_dims": 3}}), "x", 0)
