"""Ranks and recalls: hand-made scores, ties, padding, sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import contract
from vlx.core import config as configs
from vlx.evaluate import predict
from vlx.evaluate.tasks.retrieval import Retrieval, prior, ranks, recalls
from vlx.evaluate.tasks.zero_shot import ZeroShot
from vlx.train.run import Run


def test_rank_is_the_number_of_wrong_candidates_at_least_as_good():
  scores = jnp.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.4], [0.1, 0.2, 0.3]])
  relevant = jnp.eye(3, dtype=bool)
  np.testing.assert_array_equal(ranks(scores, relevant), [0, 1, 0])


def test_of_several_right_ones_the_best_counts():
  scores = jnp.array([[0.9, 0.1, 0.5]])
  relevant = jnp.array([[False, True, True]])
  np.testing.assert_array_equal(ranks(scores, relevant), [1])


def test_ties_are_misses():
  """A model that says the same of everything finds nothing, not a lucky first."""
  scores = jnp.zeros((4, 12))
  relevant = jnp.eye(4, 12, dtype=bool)
  assert recalls(np.asarray(ranks(scores, relevant))) == {"r1": 0, "r5": 0, "r10": 0}


def test_recalls_in_percent():
  assert recalls(np.array([0, 1, 4, 5, 9, 10, 0, 0])) == {"r1": 37.5, "r5": 62.5, "r10": 87.5}


def test_prior_is_a_soft_maximum_over_the_bank():
  bank = jnp.array([[0.2, 0.9], [0.4, 0.1], [0.3, 0.1]])
  np.testing.assert_allclose(prior(bank, 1e4), [0.4, 0.9], atol=1e-3)
  np.testing.assert_allclose(prior(bank, 1e-3), bank.mean(axis=0), atol=1e-3)
  # exp(2·0.2) + exp(2·0.4) + exp(2·0.3) = 5.5395…, a third of it 1.8465…, half its logarithm
  # 0.3066…
  np.testing.assert_allclose(prior(bank[:, :1], 2.0), [0.306645], atol=1e-6)


def test_scores_that_are_no_numbers_find_nothing():
  for scores in (jnp.full((4, 12), jnp.nan), jnp.zeros((4, 12)).at[:, ::2].set(jnp.nan)):
    assert recalls(np.asarray(ranks(scores, jnp.eye(4, 12, dtype=bool))))["r1"] == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return Run(configs.load_config("configs/clip.py:smoke"), tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def model(run):
  return contract.model(run)


@pytest.fixture(scope="module")
def data(run):
  return contract.data(run)


def evaluate(run, mesh_sizes, batch_size, **changes):
  """Retrieval on `combo` of a fresh model."""
  config = run.config.copy_and_resolve_references()
  config.mesh.update(mesh_sizes)
  other = Run(config, run.workdir)
  evaluator = Retrieval(splits=("combo",), gallery=("combo",), batch_size=batch_size, **changes)
  return contract.measures(evaluator, contract.model(other), contract.data(other))


def test_figures_do_not_depend_on_padding_or_devices(run):
  """404 images: batches of 32 leave 12 over, batches of 256 leave 108; one axis or two."""
  one = evaluate(run, dict(data=8, fsdp=1), batch_size=32)
  assert set(one) == {
    f"combo/{d}_r{k}" for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)
  }
  assert one == evaluate(run, dict(data=4, fsdp=2), batch_size=256)


@pytest.fixture(scope="module")
def plain(model, data):
  return contract.measures(Retrieval(splits=("combo",), gallery=("combo",)), model, data)


def embedded(model, data, batch_size=256):
  with jax.set_mesh(model.mesh):
    return predict.predict_examples(
      model,
      data.examples("combo", 'keep("image", "caption")'),
      "embed_image",
      ("image",),
      ("caption",),
      batch_size=batch_size,
    )


def test_a_bank_takes_its_prior_off_the_captions_scores(model, data, plain):
  """Image → text alone. The bank here is the split itself; at a scale near zero a prior is a
  mean.
  """
  splits = dict(splits=("combo",), gallery=("combo",))
  measured = contract.measures(Retrieval(**splits, bank="combo", bank_scale=1e-4), model, data)
  captions = sorted(set(data.source("combo").texts(("caption",))))
  with jax.set_mesh(model.mesh):
    text = predict.texts(model, captions, batch_size=256)
  image, targets = embedded(model, data)
  scores = model.system.similarity(jnp.asarray(image), jnp.asarray(text))
  relevant = jnp.array([[c == caption for c in captions] for caption in targets["caption"]])
  expected = recalls(np.asarray(ranks(scores - scores.mean(axis=0), relevant)))
  for name, value in expected.items():
    # A pair that all but ties may fall either way.
    assert measured[f"combo/image_to_text_{name}"] == pytest.approx(value, abs=0.5)
    assert measured[f"combo/text_to_image_{name}"] == plain[f"combo/text_to_image_{name}"]
  assert measured != plain


def test_embeddings_come_in_the_sources_order_without_padding(model, data):
  found, targets = embedded(model, data, batch_size=64)
  source = data.source("combo")
  assert targets["caption"].tolist() == [source[i]["caption"] for i in range(len(source))]
  example = data.examples("combo")(403, None)[1]["image"]
  alone = jax.jit(model.system.embed_image)(model.variables, jnp.asarray(example[None]))
  np.testing.assert_allclose(found[403], alone[0], rtol=1e-4, atol=1e-5)


def test_ensembled_prompts_are_the_mean_of_normalised_ones(model):
  names = ["cat", "red apple", "flag of kenya", "a {brace}"]
  with jax.set_mesh(model.mesh):
    both = predict.texts(model, names, batch_size=8, templates=("{}", "an image of {}"))
    each = [
      predict.texts(model, [t.replace("{}", n) for n in names], batch_size=8)
      for t in ("{}", "an image of {}")
    ]
  expected = np.mean([e / np.linalg.norm(e, axis=1, keepdims=True) for e in each], axis=0)
  np.testing.assert_allclose(both, expected, rtol=1e-4, atol=1e-5)


def test_zero_shot_with_one_prompt_is_retrieval_of_class_names(model, data, plain):
  """Retrieval against the class names and zero-shot with the bare prompt are the same measure."""
  zero_shot = contract.measures(
    ZeroShot(splits=("combo",), classes=("combo",), templates=("{}",)), model, data
  )
  assert zero_shot == {
    "combo/top1": plain["combo/image_to_text_r1"],
    "combo/top5": plain["combo/image_to_text_r5"],
  }


def test_a_score_that_is_no_number_is_no_hit_where_all_is_relevant():
  scores, relevant = jnp.array([[jnp.nan], [1.0]]), jnp.ones((2, 1), bool)
  assert np.asarray(ranks(scores, relevant)).tolist() == [1, 0]
