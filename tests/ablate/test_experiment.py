"""Experiments: arms, seeds, what is done is not done again."""

import json
import pathlib

import numpy as np
import pytest

from vlx.ablate import experiment as experiments
from vlx.ablate.experiment import Experiment
from vlx.core.errors import UserError

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
    (run.workdir / "results.json").write_text(json.dumps({MEASURE: value}))

  monkeypatch.setattr(experiments.loop, "train", train)
  monkeypatch.setattr(experiments.Evaluation, "of", lambda run: None)
  experiment = small()
  values = experiments.run_arms(experiment, tmp_path)
  np.testing.assert_array_equal(values["cosine"], [[0.0], [10.0]])
  np.testing.assert_array_equal(values["inner_product"], [[1.0], [11.0]])
  assert len(trained) == 4
  experiments.run_arms(experiment, tmp_path)
  assert len(trained) == 4
  (tmp_path / "inner_product" / "1" / "results.json").unlink()
  experiments.run_arms(experiment, tmp_path)
  assert len(trained) == 5
  with pytest.raises(UserError, match="another config"):
    experiments.run_arms(small(arms={"cosine": {"model.embed_dim": 16}}), tmp_path)


def test_table_has_mean_and_standard_deviation(tmp_path):
  values = {"cosine": np.array([[1.0], [3.0]]), "inner_product": np.array([[5.0], [5.0]])}
  text = experiments.table(small(), values)
  assert "| cosine | 2.0 ± 1.4 |" in text and "| inner_product | 5.0 ± 0.0 |" in text
  # As many digits as the spread needs.
  close = {"cosine": np.array([[3.1], [3.14]])}
  assert "| cosine | 3.12 ± 0.03 |" in experiments.table(small(), close)
  experiments.plot(small(), values, tmp_path / "plot.png")
  assert (tmp_path / "plot.png").stat().st_size > 1000


def test_every_arm_of_every_experiment_fits_its_config():
  for path in pathlib.Path("experiments").glob("*.py"):
    experiment = experiments.load(path)
    for arm in experiment.arms:
      assert experiments.arm_config(experiment, arm, 0).seed == 0


def test_an_override_that_does_not_fit_is_told():
  with pytest.raises(UserError, match="arm 'x' does not fit"):
    experiments.arm_config(small(arms={"x": {"model.embed_dims": 3}}), "x", 0)
