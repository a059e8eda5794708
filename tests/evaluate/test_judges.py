"""Judges of pictures against what they must say of real ones, of copies and of the best of many."""

import dataclasses
import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vlx import cli
from vlx.core.config import build
from vlx.data.transforms import preprocess
from vlx.core.errors import UserError
from vlx.evaluate.tasks import fidelity
from vlx.evaluate.tasks import generation
from vlx.evaluate import reference_models as judges
from vlx.evaluate.tasks import reranking
from vlx.evaluate.tasks.classification import Classification
from vlx.train.run import Run

SAMPLES = 2
OPS = 'decode|resize(16)|normalize|tokenize("caption", 12)|keep("image", "text", "text_mask", "caption")'


def untrained(name, folder):
  """A run of a smoke config and variables that tell pictures apart."""
  run = Run(configs.load_config(f"configs/{name}.py:smoke"), folder)
  size = 48 if name == "vit" else 32
  batch = dict(
      image=np.zeros((1, size, size, 3), np.float32), text=np.zeros((1, 16), np.int32),
      text_mask=np.ones((1, 16), bool),
  )
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(run.system.init, jax.random.key(0), batch)
  draw = lambda s: jnp.asarray(rng.normal(0, 0.2, s.shape), jnp.float32)
  return run, jax.tree.map(draw, shapes)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  run, variables = untrained("clip", tmp_path_factory.mktemp("clip"))
  with jax.set_mesh(run.mesh):
    yield judges.Judge(run.system, variables, run.tokenizer, run.mesh, "decode|resize(32)|normalize")


@pytest.fixture(scope="module")
def dalle(tmp_path_factory):
  return Run(configs.load_config("configs/dalle.py:smoke"), tmp_path_factory.mktemp("dalle"))


def test_accuracy_of_real_pictures_is_the_classifiers(tmp_path):
  run, variables = untrained("vit", tmp_path)
  section = run.config.evaluators.classification.to_dict()
  section.pop("type")
  evaluator = build(Classification, {**section, "splits": ("concept",)}, "")
  judge = judges.Judge(run.system, variables, None, run.mesh, evaluator.preprocess)
  records = run.source("concept")
  with jax.set_mesh(run.mesh):
    expected = evaluator(run, variables, draw=False)["concept/accuracy"]
    found = judges.Panel(None, {"groups": judge}).measure(records)
  assert found.keys() == {"groups_accuracy"} and found["groups_accuracy"].shape == (len(records),)
  assert 0 < expected < 100
  np.testing.assert_allclose(found["groups_accuracy"].mean(), expected)


def test_cosines_are_of_each_picture_with_its_caption(clip, dalle):
  records = [dalle.source("combo")[i] for i in (0, 5, 9)]
  records.append({**records[0], "image": records[1]["image"]})
  found = clip.cosines(records)
  for record, cosine in zip(records, found):
    image = preprocess.parse(clip.preprocess).finish(record, None)["image"]
    ids, mask = clip.tokenizer.encode(record["caption"], 16)
    image, ids, mask = (jnp.repeat(jnp.asarray(a)[None], clip.mesh.size, axis=0) for a in (image, ids, mask))
    x = clip.system.encode_image(clip.variables, image)[0]
    y = clip.system.encode_text(clip.variables, ids, mask)[0]
    np.testing.assert_allclose(cosine, x @ y / np.sqrt((x @ x) * (y @ y)), atol=1e-5)
  assert len(set(np.round(found, 4))) == 4


def test_a_drawn_picture_is_judged_as_it_is():
  image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
  record = judges.with_picture({"caption": "x", "image": b""}, image / np.float32(127.5) - 1)
  np.testing.assert_array_equal(Image.open(io.BytesIO(record["image"])), image)
  assert record["caption"] == "x"


@dataclasses.dataclass(frozen=True)
class Copyist:
  """Draws the pictures it was given, in order; its codes keep all."""

  pictures: int

  def generate(self, variables, text, text_mask, seeds, **how):
    return variables[seeds // SAMPLES]

  def encode_image(self, variables, image):
    return image

  def decode_image(self, variables, ids):
    return ids

  def image_nats(self, variables, image, text, text_mask):
    return image[:, 0, 0, 0] * 0 + 2


@pytest.fixture
def copyist(dalle):
  """A run whose system draws, for each of eight captions of `combo`, its own real picture."""
  prompts = generation.prompts_of(dalle, "combo", OPS, 8)
  images = np.stack([e["image"] for e in prompts.examples])
  run = Run(dalle.config, dalle.workdir)
  run.__dict__["system"] = Copyist(8)
  return run, images


def test_samples_that_are_the_real_pictures_measure_as_these(clip, copyist, monkeypatch):
  run, images = copyist
  judge = dataclasses.replace(clip, preprocess="decode|resize(16)|resize(32)|normalize")  # as the run sees them
  monkeypatch.setattr(judges, "open_panel", lambda *_: judges.Panel(judge, {}))
  evaluator = generation.Generation(
      ("combo",), OPS, 12, samples=SAMPLES, rows=2, clip="any", nearest_in="combo"
  )
  found = evaluator(run, images, draw=True)
  assert found["combo/image_nats"] == 2
  score = lambda name: found[f"combo/{name}/clip_score"]
  for name in ("samples", "reconstructed", "nearest"):
    np.testing.assert_allclose(score(name), score("real"), rtol=1e-4)
  assert abs(score("shuffled") - score("real")) > 1e-3
  # A copy's nearest is the copied; a real picture of the split that is searched is not its own nearest.
  np.testing.assert_allclose(found["combo/samples/nearest_cosine"], 1, rtol=1e-5)
  assert found["combo/real/nearest_cosine"] < 1 - 1e-4
  for name in ("generation", "nearest"):
    assert (run.workdir / "samples" / f"{name}_combo.png").is_file()


def test_fidelity_of_the_real_pictures(clip, copyist, monkeypatch):
  run, images = copyist
  monkeypatch.setattr(judges, "open_features", lambda *_: dataclasses.replace(
      clip, preprocess="decode|resize(16)|resize(32)|normalize"
  ))
  monkeypatch.setattr(fidelity, "sample_prompts", lambda *_, **how: 1 - images[:, None])  # another set
  found = fidelity.Fidelity(("combo",), OPS, "any", count=8)(run, images, draw=True)
  same = {k.rpartition("/")[2]: v for k, v in found.items() if "reconstructed" in k}
  other = {k.rpartition("/")[2]: v for k, v in found.items() if "samples" in k}
  assert same["precision"] == same["recall"] == 100
  np.testing.assert_allclose(same["fid"], 0, atol=1e-4)
  assert other["fid"] > 100 * abs(same["fid"]) and other["kid"] > same["kid"]


def test_best_of_n_is_the_mean_over_all_choices():
  rng = np.random.default_rng(0)
  ranking, values = rng.normal(size=(2, 3, 6))
  for n in range(1, 7):
    chosen = [
        values[i, max(choice, key=lambda j: ranking[i, j])]
        for i in range(3) for choice in itertools.combinations(range(6), n)
    ]
    np.testing.assert_allclose(reranking.best_of(ranking, values, n), np.mean(chosen))
  np.testing.assert_allclose(reranking.best_of(ranking, values, 1), values.mean())
  np.testing.assert_allclose(reranking.best_of(ranking, ranking, 6), ranking.max(axis=1).mean())
  own = [reranking.best_of(ranking, ranking, n) for n in range(1, 7)]
  assert (np.diff(own) > 0).all()


def test_the_curve_begins_at_the_plain_mean(clip, copyist, monkeypatch):
  run, images = copyist
  monkeypatch.setattr(judges, "open_clip", lambda *_: clip)
  monkeypatch.setattr(judges, "open_panel", lambda *_: judges.Panel(clip, {}))
  noisy = np.clip(images[:, None] + np.random.default_rng(0).normal(0, 0.5, (1, 4, 16, 16, 3)), -1, 1)
  monkeypatch.setattr(reranking, "sample_prompts", lambda *_, **how: noisy.astype(np.float32))
  found = reranking.Reranking(("combo",), OPS, "a", "b", prompts=8, samples=4, rows=2)(run, images, draw=True)
  assert found.keys() == {
      f"combo/best_of_{n}/{name}" for n in (1, 2, 4) for name in ("rank_cosine", "clip_score")
  }
  cosines = clip.cosines(generation.drawn_records(generation.prompts_of(run, "combo", OPS, 8).records, noisy))
  np.testing.assert_allclose(found["combo/best_of_1/rank_cosine"], cosines.mean(), rtol=1e-5)
  best = cosines.reshape(8, 4).max(axis=1)
  np.testing.assert_allclose(found["combo/best_of_4/clip_score"], 2.5 * np.maximum(best, 0).mean(), rtol=1e-5)
  assert (run.workdir / "samples" / "reranking.png").is_file()


def test_skin_tones():
  light, dark, person = "\U0001f3fb", "\U0001f3ff", "\U0001f9d1"
  label = lambda sequence: preprocess.parse("skin_tone").finish({"sequence": sequence}, None)["label"]
  sequences = (person, person + light, person + dark, 2 * (person + dark), person + light + person + dark)
  assert [label(s) for s in sequences] == [0, 1, 5, 5, 6]


def test_what_is_no_judge_is_told(tmp_path):
  mesh = None
  for open_judge in (judges.open_clip, judges.open_features):
    with pytest.raises(UserError, match="there is no file or folder"):
      open_judge(str(tmp_path / "none"), mesh)
  with pytest.raises(UserError, match="holds no run"):
    judges.open_classifier(str(tmp_path), mesh)
  (tmp_path / "config.json").write_text(configs.load_config("configs/clip.py:smoke").to_json_best_effort())
  with pytest.raises(UserError, match="holds no classifier"):
    judges.open_classifier(str(tmp_path), mesh)
