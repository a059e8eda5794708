"""Two players in one compiled step."""

import numpy as np
import pytest

import vlx
from tests.new_systems import harness
from tests.new_systems.gan.config import get_config
from vlx.core.files import read_steps


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return harness.exercise(get_config(), tmp_path_factory.mktemp("gan"))


def test_each_player_learns_by_its_own_rate(run):
  line = read_steps(run.workdir / "metrics.jsonl")[-1]
  assert (line["train/discriminator/lr"], line["train/generator/lr"]) == (
    pytest.approx(2e-3),
    pytest.approx(1e-3),
  )
  assert {f"train/discriminator/{name}" for name in ("real", "fake", "mismatched")} <= line.keys()


def test_an_average_is_kept_of_the_generator_alone(run):
  names = [name for name in harness.last_state(run) if name.startswith("average/")]
  assert names and all(name.startswith("average/generator/") for name in names)


def test_it_samples_and_was_evaluated_on_the_way(run):
  images = vlx.load(run.workdir).generate_images("red apple", 3, seed=1, truncation=0.5)
  assert images.shape == (3, 16, 16, 3) and len(np.unique(images[0])) > 1
  assert (run.workdir / "figures" / "generation_combo.png").is_file()
  assert (run.workdir / "report.html").is_file()


@pytest.mark.slow
def test_it_compiles_for_a_pod():
  assert harness.compiles_for_a_pod(get_config())["model_flops_per_step"] > 0
