"""Samples, and what reference models say of real images, of copies and of the best of many."""

import dataclasses
import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import contract
from vlx.core import config as configs
from vlx.core import partition
from vlx.core.errors import UserError
from vlx.data.images import to_png
from vlx.data.sources import open_source
from vlx.data.transforms import preprocess
from vlx.evaluate import reference_models, runner
from vlx.evaluate.reference_models import ReferenceModel, Scorers
from vlx.evaluate.tasks import fidelity, generation, reranking
from vlx.evaluate.tasks.classification import Classification
from vlx.model import Model
from vlx.train.run import Run

SAMPLES = 2
MESH = partition.make_mesh(dict(data=-1, fsdp=1, tensor=1))
TRANSFORM = "decode|resize(16)|normalize"


def untrained(name, folder):
  """A run of a smoke config and a model whose variables tell images apart."""
  run = Run(configs.load_config(f"configs/{name}.py:smoke"), folder)
  rng = np.random.default_rng(0)
  draw = lambda s: jnp.asarray(rng.normal(0, 0.2, s.shape), jnp.float32)
  return run, contract.model(run, jax.tree.map(draw, contract.shapes(run.system)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  _, model = untrained("clip", tmp_path_factory.mktemp("clip"))
  with jax.set_mesh(model.mesh):
    yield ReferenceModel(model)


@pytest.fixture(scope="module")
def dalle(tmp_path_factory):
  return Run(configs.load_config("configs/dalle.py:smoke"), tmp_path_factory.mktemp("dalle"))


def test_accuracy_of_real_images_is_the_classifiers(tmp_path):
  run, model = untrained("vit", tmp_path)
  data = contract.data(run)
  expected = contract.measures(Classification(splits=("concept",)), model, data)["concept/accuracy"]
  records = data.source("concept")
  with jax.set_mesh(model.mesh):
    found = Scorers(None, {"groups": ReferenceModel(model)}).measure(records)
  assert found.keys() == {"groups_accuracy"} and found["groups_accuracy"].shape == (len(records),)
  assert 0 < expected < 100
  np.testing.assert_allclose(found["groups_accuracy"].mean(), expected)


def test_cosines_are_of_each_image_with_its_caption(clip, dalle):
  records = [open_source(dalle.config.data.source, "combo")[i] for i in (0, 5, 9)]
  records.append({**records[0], "image": records[1]["image"]})
  found, model = clip.cosines(records), clip.model
  for record, cosine in zip(records, found):
    x, y = model.embed_images([record["image"]])[0], model.embed_texts([record["caption"]])[0]
    np.testing.assert_allclose(cosine, x @ y / np.sqrt((x @ x) * (y @ y)), atol=1e-5)
  assert len(set(np.round(found, 4))) == 4


def test_a_sampled_image_is_scored_as_it_is():
  image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
  np.testing.assert_array_equal(
    Image.open(io.BytesIO(to_png(image / np.float32(127.5) - 1))), image
  )
  np.testing.assert_array_equal(Image.open(io.BytesIO(to_png(image))), image)


@dataclasses.dataclass(frozen=True)
class Copyist:
  """A system that vlx does not know: samples the images that are its variables, in order,
  brighter where asked.
  """

  @dataclasses.dataclass(frozen=True)
  class Sampler:
    brightness: float = 0.0

  def init(self, rng):
    return {"params": {}, "state": {}}

  def sample_inputs(self):
    shape = jax.ShapeDtypeStruct
    return {"text": shape((12,), jnp.int32), "text_mask": shape((12,), jnp.bool_)}

  def sample_images(self, v, inputs, seeds, sampler):
    return v[seeds // SAMPLES % len(v)] + sampler.brightness

  def reconstruct(self, v, image):
    return image


@pytest.fixture
def copyist(dalle):
  """A model that samples, for each of eight captions of `combo`, its own real image."""
  data = contract.data(dalle)
  model = Model(Copyist(), None, dalle.tokenizer, TRANSFORM, MESH)
  prompts = generation.prompts_of(model, data, "combo", 8)
  images = np.stack([e["image"] for e in prompts.examples])
  return dataclasses.replace(model, variables=images), data, images


def seen_as_sampled(clip):
  return dataclasses.replace(clip, image_transform="decode|resize(16)|resize(32)|normalize")


def test_samples_that_are_the_real_images_measure_as_these(clip, copyist, monkeypatch):
  model, data, _ = copyist
  monkeypatch.setattr(
    reference_models, "open_scorers", lambda *_: Scorers(seen_as_sampled(clip), {})
  )
  evaluator = generation.Generation(
    ("combo",), samples=SAMPLES, rows=2, clip="any", nearest_in="combo"
  )
  with jax.set_mesh(MESH):
    found, figures = evaluator(model, data)
  score = lambda name: found[f"combo/{name}/clip_cosine"]
  for name in ("samples", "reconstructed", "nearest"):
    np.testing.assert_allclose(score(name), score("real"), rtol=1e-4)
  assert abs(score("shuffled") - score("real")) > 1e-3
  # A copy's nearest is the copied; a real image of the split that is searched is not its own
  # nearest.
  np.testing.assert_allclose(found["combo/samples/nearest_cosine"], 1, rtol=1e-5)
  assert found["combo/real/nearest_cosine"] < 1 - 1e-4
  assert set(figures) == {"generation_combo", "nearest_combo"}
  assert found["combo/samples/border"] == pytest.approx(found["combo/real/border"])


def test_the_border_is_the_outermost_pixels_alone():
  images = np.full((2, 3, 6, 5, 3), 1.0)
  images[:, :, 1:-1, 1:-1] = -1
  assert generation.border(images) == 1
  images[..., 0, 0, :] = -1  # a corner: one of 18 pixels
  assert generation.border(images) == pytest.approx(17 / 18)


def test_a_samplers_fields_reach_the_system_and_a_mistyped_one_is_told(copyist):
  model, data, images = copyist
  prompts = generation.prompts_of(model, data, "combo", 8)
  with jax.set_mesh(MESH):
    found = generation.sample_prompts(model, prompts, SAMPLES, {"brightness": 0.25})
  np.testing.assert_allclose(found[:, 1], np.clip(images + 0.25, -1, 1), atol=1e-6)
  with pytest.raises(UserError, match="no field sampler.brightnes: did you mean 'brightness'"):
    model.sampler(brightnes=1.0)


def test_fidelity_of_the_real_images(clip, copyist, monkeypatch):
  model, data, images = copyist
  monkeypatch.setattr(reference_models, "open_features", lambda *_: seen_as_sampled(clip))
  monkeypatch.setattr(fidelity, "sample_prompts", lambda *_: 1 - images[:, None])  # another set
  found = contract.measures(fidelity.Fidelity(("combo",), "any", count=8), model, data)
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
      for i in range(3)
      for choice in itertools.combinations(range(6), n)
    ]
    np.testing.assert_allclose(reranking.best_of(ranking, values, n), np.mean(chosen))
  np.testing.assert_allclose(reranking.best_of(ranking, values, 1), values.mean())
  np.testing.assert_allclose(reranking.best_of(ranking, ranking, 6), ranking.max(axis=1).mean())
  own = [reranking.best_of(ranking, ranking, n) for n in range(1, 7)]
  assert (np.diff(own) > 0).all()


def test_the_curve_begins_at_the_plain_mean(clip, copyist, monkeypatch):
  model, data, images = copyist
  monkeypatch.setattr(reference_models, "open_clip", lambda *_: clip)
  monkeypatch.setattr(reference_models, "open_scorers", lambda *_: Scorers(clip, {}))
  noisy = np.clip(
    images[:, None] + np.random.default_rng(0).normal(0, 0.5, (1, 4, 16, 16, 3)), -1, 1
  )
  monkeypatch.setattr(reranking, "sample_prompts", lambda *_: noisy.astype(np.float32))
  evaluator = reranking.Reranking(("combo",), "a", "b", prompts=8, samples=4, rows=2)
  with jax.set_mesh(MESH):
    found, figures = evaluator(model, data)
  assert found.keys() == {
    f"combo/best_of_{n}/{name}" for n in (1, 2, 4) for name in ("rank_cosine", "clip_cosine")
  }
  records = generation.prompts_of(model, data, "combo", 8).records
  cosines = clip.cosines(generation.with_images(records, noisy))
  np.testing.assert_allclose(found["combo/best_of_1/rank_cosine"], cosines.mean(), rtol=1e-5)
  best = cosines.reshape(8, 4).max(axis=1)
  np.testing.assert_allclose(found["combo/best_of_4/clip_cosine"], best.mean(), rtol=1e-5)
  assert set(figures) == {"reranking", "best_combo"}


def test_which_way_a_measure_is_better():
  evaluators = {
    "fidelity": fidelity.Fidelity(("combo",), "any"),
    "generation": generation.Generation(("combo",)),
  }
  direction = lambda key: runner.direction(evaluators, key)
  assert (
    direction("fidelity/combo/samples/fid") == direction("fidelity/combo/samples/kid") == "lower"
  )
  assert direction("fidelity/combo/samples/recall") == "higher"
  assert direction("generation/combo/samples/tones_accuracy") == "higher"
  assert direction("generation/combo/samples/nobody_knows") is direction("other/combo/x") is None


def test_skin_tones():
  light, dark, person = "\U0001f3fb", "\U0001f3ff", "\U0001f9d1"
  label = lambda sequence: preprocess.parse("skin_tone").finish({"sequence": sequence}, None)[
    "label"
  ]
  sequences = (
    person,
    person + light,
    person + dark,
    2 * (person + dark),
    person + light + person + dark,
  )
  assert [label(s) for s in sequences] == [0, 1, 5, 5, 6]


def test_what_is_no_reference_model_is_told(tmp_path):
  for open_reference in (reference_models.open_clip, reference_models.open_features):
    with pytest.raises(UserError, match="there is no file or folder"):
      open_reference(str(tmp_path / "none"), MESH)
  with pytest.raises(UserError, match="no file|holds no files|no config.json"):
    reference_models.open_classifier(str(tmp_path), MESH)


def test_what_an_evaluator_asks_for_is_checked_before_anything_runs(dalle, tmp_path):
  config = dalle.config.copy_and_resolve_references().unlock()
  section = lambda **fields: {
    "x": {"type": "vlx.evaluate.tasks.generation.Generation", "splits": ("combo",), **fields}
  }
  for change, message in (
    (
      {
        "x": {
          "type": "vlx.evaluate.tasks.retrieval.Retrieval",
          "splits": ("combo",),
          "gallery": ("combo",),
        }
      },
      "evaluators.x: DALLE lacks EmbedsImages",
    ),
    (section(clip=str(tmp_path / "none")), "no file or folder"),
    (section(splits=("kombo",)), "did you mean 'combo'"),
    (section(sample=3), "no field evaluators.x.sample: did you mean 'samples'"),
    ({"x": {"splits": ("combo",)}}, "evaluators.x has no type"),
  ):
    config.evaluators = change
    run = Run(config, tmp_path)
    with pytest.raises(UserError, match=message):
      runner.Evaluation.from_parts(config, dalle.system, dalle.tokenizer, MESH, run.workdir)


def test_the_loss_of_a_split_is_exact_whatever_the_batch_and_its_padding(dalle):
  from vlx.evaluate.tasks.loss import HeldOutLoss

  model, data = contract.model(dalle), contract.data(dalle)
  one, other = (
    contract.measures(HeldOutLoss(("combo",), 'tokenize("caption", 12)', batch_size=n), model, data)
    for n in (64, 200)
  )
  assert one.keys() == {"combo/text", "combo/image", "combo/loss"}
  for name in one:
    np.testing.assert_allclose(one[name], other[name], rtol=1e-5)
  # By the loss of whole batches, weighed by their counts.
  examples = data.examples("combo", 'tokenize("caption", 12)', 'keep("image", "text", "text_mask")')
  batch = {
    k: jnp.stack([examples(i, None)[1][k] for i in range(404)])
    for k in ("image", "text", "text_mask")
  }
  terms, _ = jax.jit(
    lambda v, b: dalle.system.loss(v, b, jax.random.key(0), step=0, train=False, frozen=frozenset())
  )(model.variables, batch)
  np.testing.assert_allclose(one["combo/text"], terms["text"].mean, rtol=1e-5)
  np.testing.assert_allclose(one["combo/image"], terms["image"].mean, rtol=1e-5)
  total = sum(term.weight * term.mean for term in terms.values())
  np.testing.assert_allclose(one["combo/loss"], total, rtol=1e-5)
