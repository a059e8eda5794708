"""Smoke runs through `vlx.generate` and `vlx.load`: captions, samples, what is told of bad
input, folders that move.
"""

import collections
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import vlx
from vlx.core import config as configs
from vlx.core.errors import UserError
from vlx.core.files import read_steps
from vlx.data.sources import open_source
from vlx.evaluate.measure import measure_on
from vlx.evaluate.runner import Evaluation
from vlx.generate import outputs
from vlx.inference.decoding import Search
from vlx.train import loop
from vlx.train.run import Run


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
  config = configs.load_config("configs/show_attend_tell.py:smoke")
  config.steps = 40
  run = Run(config, tmp_path_factory.mktemp("runs") / "show_attend_tell")
  loop.train(run)  # evaluation has tests of its own
  return run


def test_the_loss_falls_below_the_entropy_of_single_words(captioner):
  counts = collections.Counter()
  for text in open_source(captioner.config.data.source, "train").texts(("caption",)):
    ids, mask = captioner.tokenizer.encode(text, 16)
    counts.update(ids[mask][1:].tolist())
  share = np.array(list(counts.values())) / sum(counts.values())
  entropy = -(share * np.log(share)).sum()
  losses = [
    line["train/nats_per_token"] for line in read_steps(captioner.workdir / "metrics.jsonl")
  ]
  assert losses[0] > entropy > np.mean(losses[-5:])


def test_an_image_is_captioned_from_any_form(captioner, tmp_path):
  model = vlx.load(captioner.workdir)
  path = tmp_path / "an image.png"
  image = Image.new("RGBA", (50, 70), (200, 30, 30, 128))
  image.save(path)
  search = Search(beam_size=4, max_length=6)
  found = model.caption(str(path), search, count=3)
  assert len(found) == 3 and all(isinstance(text, str) and score <= 0 for text, score in found)
  assert (
    found
    == model.caption(image, search, count=3)
    == model.caption(path.read_bytes(), search, count=3)
  )
  assert model.caption(np.asarray(image), search, count=3) == found
  maps = model.attention(image, found[0][0])
  np.testing.assert_allclose(maps[1:].sum(axis=(1, 2)), 1, rtol=1e-4)
  assert outputs.words_sheet(model, str(path), found[0][0]) is not None
  assert outputs.words_sheet(model, str(path), "") is None  # it said nothing
  (tmp_path / "val").mkdir()
  shutil.copy(path, tmp_path / "val" / "a.png")
  (tmp_path / "val" / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": "a thing"}')
  measures = measure_on(model, f"folder:{tmp_path}", "val")  # as on data of others
  assert 0 <= measures["captions/val/bleu4"] <= 100
  with pytest.raises(UserError, match="cannot read the image .*missing.png"):
    model.caption(tmp_path / "missing.png")
  with pytest.raises(UserError, match="config.json cannot be used: image cannot be decoded"):
    model.caption(captioner.workdir / "config.json")
  with pytest.raises(
    UserError, match="this model: ShowAttendTell lacks GeneratesImages .*CaptionsImages"
  ):
    model.generate_images("a cat")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A tokenizer and a DALL-E with it as a part, of no training to speak of; then the tokenizer's
  run is gone.
  """
  folder = tmp_path_factory.mktemp("runs")
  paths = {name: folder / name for name in ("vqvae", "dalle")}
  kept = None
  for name, path in paths.items():
    config = configs.load_config(f"configs/{name}.py:smoke")
    config.steps = 1
    if name == "dalle":
      with config.unlocked():
        config.model.tokenizer = dict(source=str(paths["vqvae"]))
    run = Run(config, path)
    loop.train(run, on_evaluate=Evaluation.of(run))
    if name == "vqvae":
      kept = jax.tree.map(np.asarray, vlx.load(path).variables)
  (paths["vqvae"]).rename(folder / "gone")
  paths["dalle"].rename(folder / "renamed")
  return {"vqvae": folder / "gone", "dalle": folder / "renamed", "variables": kept}


def test_evaluators_measure_and_draw(runs):
  results = json.loads((runs["vqvae"] / "results.json").read_text())["measures"]
  assert results.keys() == {
    f"reconstruction/combo/{m}" for m in ("psnr", "codes_used", "perplexity")
  }
  assert (runs["vqvae"] / "figures" / "reconstruction_combo.png").is_file()
  results = json.loads((runs["dalle"] / "results.json").read_text())["measures"]
  borders = {f"generation/combo/{name}/border" for name in ("samples", "real")}
  assert results.keys() == {"loss/combo/image", "loss/combo/text", "loss/combo/loss"} | borders
  assert (runs["dalle"] / "figures" / "generation_combo.png").is_file()
  # A decoder that has learned nothing gives 32 codes about the same chance.
  assert abs(results["loss/combo/image"] - np.log(32)) < 0.5
  page = (runs["dalle"] / "report.html").read_text()
  assert "loss/combo/image" in page and page.count("data:image/png") == 2


def test_a_folder_that_moved_holds_its_parts_and_training_left_them(runs):
  model = vlx.load(runs["dalle"])
  found = {kind: model.variables[kind]["tokenizer"] for kind in ("params", "state")}
  jax.tree.map(np.testing.assert_array_equal, found, runs["variables"])
  # They stand in frozen/ alone, and no moment of an optimizer is of them.
  from vlx.core import checkpoint

  with checkpoint.open_manager(runs["dalle"] / "checkpoints", read_only=True) as manager:
    assert not [name for name in checkpoint._saved(manager, 1) if "tokenizer" in name]


def test_images_of_a_prompt(runs, tmp_path):
  model = vlx.load(runs["dalle"])
  images = model.generate_images("Red apple!", 3, seed=4, temperature=0.5)
  assert images.shape == (3, 16, 16, 3) and images.dtype == np.uint8
  np.testing.assert_array_equal(
    model.generate_images("Red apple!", 1, seed=6, temperature=0.5)[0], images[2]
  )
  picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8))
  kept = model.generate_images("red apple", 2, image=picture, keep_rows=3)
  assert (np.abs(kept[0, :12].astype(int) - kept[1, :12]) <= 1).mean() > 0.5
  for arguments, message in (
    (dict(prompt=" "), "the prompt is empty"),
    (dict(prompt="apple " * 12), "too long: .* reads 12 tokens"),
    (dict(prompt="a", num=0), "at least 1"),
    (dict(prompt="a", temprature=1.0), "did you mean 'temperature'"),
    (dict(prompt="a", keep_rows=4, image=picture), "keep_rows must be below 4"),
    (dict(prompt="a", temperature=-1.0), "temperature is not below 0"),
  ):
    with pytest.raises(UserError, match=message):
      model.generate_images(**arguments)


def test_sampler_fields_of_a_flag():
  assert outputs.sampler_fields("temperature=0.7, num_steps=4,") == {
    "temperature": 0.7,
    "num_steps": 4,
  }
  told = outputs.sampler_fields("method=dpm_solver,guidance_interval=(0.2, 0.8)")
  assert told == {"method": "dpm_solver", "guidance_interval": (0.2, 0.8)}
  for text in ("temperature", "temperature=x y", "=3)", "a=1)(b=2", "**a", "a=b(1)"):
    with pytest.raises(UserError, match="NAME=VALUE"):
      outputs.sampler_fields(text)


def test_the_command_says_what_a_run_can_do(runs, command):
  code, out, err = command("vlx.generate", f"--workdir={runs['vqvae']}", "--prompt=red apple")
  assert code == 2 and out == ""
  assert "holds a VQVAE, which generates neither" in err and "TokenizesImages" in err
  flags = ("--prompt=a red: apple?", "--num=2", "--sampler=temperature=0.5")
  code, out, err = command("vlx.generate", f"--workdir={runs['dalle']}", *flags)
  assert code == 0, err
  path = runs["dalle"] / "generated" / "a_red_apple_temperature_0_5.png"
  assert out.strip() == str(path) and path.is_file()
  for more, message in (
    ("--film", "DALLE lacks FilmsSampling"),
    (f"--mask={path}", "DALLE takes no mask"),
  ):
    code, out, err = command("vlx.generate", f"--workdir={runs['dalle']}", "--prompt=a", more)
    assert code == 2 and not out and message in err and len(err.strip().splitlines()) == 1, err


def test_a_run_without_a_checkpoint_is_told(runs, tmp_path):
  shutil.copy(runs["dalle"] / "config.json", tmp_path / "config.json")
  with pytest.raises(UserError, match="holds no checkpoint yet"):
    vlx.load(tmp_path)
