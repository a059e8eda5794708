"""Pictures of prompts, from run folders: grids, re-ranking, prefixes, and what is told of bad input."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from vlx import cli
from vlx.core.errors import UserError
from vlx.generate import images
from vlx.train import loop
from vlx.core import checkpoint
from vlx.core import partition
from vlx.train.run import Run, open_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A tokenizer and a DALL-E with it as a part: of no training to speak of."""
  folder = tmp_path_factory.mktemp("runs")
  paths = {name: folder / name for name in ("vqvae", "dalle")}
  for name, path in paths.items():
    config = configs.load_config(f"configs/{name}.py:smoke")
    config.steps = 1
    if name == "dalle":
      config.model.tokenizer = str(paths["vqvae"])
    loop.train(Run(config, path))
  return paths


@pytest.fixture
def clip(tmp_path):
  config = configs.load_config("configs/clip.py:smoke")
  config.steps = 1
  config.evaluators.retrieval.update(dict(splits=("combo",), gallery=("combo",)))
  loop.train(Run(config, tmp_path / "clip"))
  return str(tmp_path / "clip")


def test_evaluators_measure_and_draw(runs):
  for name, measures in (("vqvae", ("psnr", "codes_used", "perplexity")), ("dalle", ("image_nats",))):
    results = json.loads((runs[name] / "results.json").read_text())
    evaluator = {"vqvae": "reconstruction", "dalle": "generation"}[name]
    assert results.keys() == {f"{evaluator}/combo/{m}" for m in measures}
    assert (runs[name] / "samples" / f"{evaluator}_combo.png").is_file()
  # A decoder that has learned nothing gives 32 codes about the same chance.
  assert abs(results["generation/combo/image_nats"] - np.log(32)) < 0.5


def variables_of(path):
  run = open_run(str(path))
  return checkpoint.restore_variables(path, partition.replicated(run.mesh))


def test_the_tokenizer_of_a_run_is_that_of_its_own_and_training_leaves_it(runs):
  found = variables_of(runs["dalle"])["state"]["tokenizer"]
  jax.tree.map(np.testing.assert_array_equal, found, variables_of(runs["vqvae"]))


def test_a_grid_of_pictures(runs):
  path, cosines = images.generate_images(str(runs["dalle"]), "Red apple!", 3)
  assert path == runs["dalle"] / "samples" / "Red_apple.png" and path.is_file() and cosines is None


@pytest.mark.slow
def test_a_grid_of_pictures_the_best_first(runs, clip):
  path, cosines = images.generate_images(str(runs["dalle"]), "red apple", 10, rerank=clip)
  assert path == runs["dalle"] / "samples" / "red_apple.png" and path.is_file()
  assert cosines.shape == (10,) and (np.diff(cosines) <= 0).all() and np.abs(cosines).max() <= 1 + 1e-5


def test_the_upper_part_of_a_picture_stays(runs, tmp_path):
  Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)).save(tmp_path / "x.png")
  run, variables = open_run(str(runs["dalle"])), variables_of(runs["dalle"])
  prefix = images.upper_part(run, variables, str(tmp_path / "x.png"), 3)
  assert prefix.shape == (3 * 4,)
  with pytest.raises(UserError, match="--keep_rows is below 4"):
    images.upper_part(run, variables, str(tmp_path / "x.png"), 4)
  with pytest.raises(UserError, match="cannot read the picture .*y.png"):
    images.upper_part(run, variables, str(tmp_path / "y.png"), 3)


def test_bad_prompts_and_runs_are_told(runs, tmp_path):
  dalle = str(runs["dalle"])
  for arguments, message in (
      ((dalle, " ", 1), "the prompt is empty"),
      ((dalle, "apple " * 12, 1), "too long: .* reads 12 tokens"),
      ((str(tmp_path), "apple", 1), "holds no run"),
      ((str(runs["vqvae"]), "apple", 1), "holds a VQVAE, which makes no pictures of texts"),
  ):
    with pytest.raises(UserError, match=message):
      images.generate_images(*arguments)
  (tmp_path / "config.json").write_text((runs["dalle"] / "config.json").read_text())
  (tmp_path / "tokenizer.json").write_text((runs["dalle"] / "tokenizer.json").read_text())
  with pytest.raises(UserError, match="holds no checkpoint yet"):
    images.generate_images(str(tmp_path), "apple", 1)
  with pytest.raises(UserError, match="a CLIP is needed here, and this is a DALLE"):
    images.generate_images(dalle, "apple", 1, rerank=dalle)


def test_pictures_of_another_size_than_the_tokenizers_are_told(runs, tmp_path):
  config = configs.load_config("configs/dalle.py:smoke")
  config.model.tokenizer = str(runs["vqvae"])
  config.data.preprocess = config.data.preprocess.replace("resize(16)", "resize(24)")
  with pytest.raises(UserError, match="pictures of 24x24 pixels, and a tokenizer for 16"):
    loop.train(Run(config, tmp_path / "other"))
