"""Records without an image, an op and an evaluator of one's own, four terms."""

import json

import pytest

import vlx
from tests.new_systems import harness
from tests.new_systems.regions.config import get_config
from vlx.core.errors import UserError
from vlx.core.files import read_steps
from vlx.train import loop
from vlx.train.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return harness.exercise(get_config(), tmp_path_factory.mktemp("regions"))


def test_each_objective_is_logged_and_the_loss_is_their_sum(run):
  for line in read_steps(run.workdir / "metrics.jsonl"):
    parts = [line[f"train/{name}"] for name in ("words", "classes", "features", "match")]
    assert line["train/loss"] == pytest.approx(sum(parts), rel=1e-5)


def test_its_own_evaluator_ran_on_the_way_and_at_the_end(run):
  results = json.loads((run.workdir / "results.json").read_text())["measures"]
  assert results.keys() == {"matching/val/right"} and 0 <= results["matching/val/right"] <= 100
  measured = [
    line["step"]
    for line in read_steps(run.workdir / "metrics.jsonl")
    if "matching/val/right" in line
  ]
  assert measured == [2, 4]


def test_what_it_cannot_do_is_told(run):
  with pytest.raises(UserError, match="RegionBERT lacks EmbedsImages.*It has: ScoresPairs"):
    vlx.load(run.workdir).embed_images([b""])


def test_parts_of_a_batch_are_refused_with_the_reason(run, tmp_path):
  config = get_config().unlock()
  config.update(dict(steps=2))
  config.optim.accumulate = 2
  with pytest.raises(UserError, match="another row of the batch"):
    loop.train(Run(config, tmp_path))


@pytest.mark.slow
def test_it_compiles_for_a_pod():
  assert harness.compiles_for_a_pod(get_config())["model_flops_per_step"] > 0
