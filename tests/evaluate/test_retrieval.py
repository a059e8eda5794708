"""Ranks and recalls: hand-made scores, ties, padding, sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlx import cli
from vlx.evaluate import predict as embed
from vlx.evaluate.report import sheets as pictures
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
  # exp(2·0.2) + exp(2·0.4) + exp(2·0.3) = 5.5395…, a third of it 1.8465…, half its logarithm 0.3066…
  np.testing.assert_allclose(prior(bank[:, :1], 2.0), [0.306645], atol=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  config = configs.load_config("configs/clip.py:smoke")
  folder = tmp_path_factory.mktemp("run")
  return Run(config, folder)


def evaluate(run, mesh_sizes, batch_size, **changes):
  """Retrieval on `combo` of a fresh model."""
  config = run.config.copy_and_resolve_references()
  config.mesh.update(mesh_sizes)
  other = Run(config, run.workdir)
  section = config.evaluators.retrieval.to_dict()
  section.pop("type")
  section.update(splits=("combo",), gallery=("combo",), batch_size=batch_size, **changes)
  with jax.set_mesh(other.mesh):
    return Retrieval(**section)(other, other.fresh_state().variables, draw=False)


def test_figures_do_not_depend_on_padding_or_devices(run):
  """404 pictures: batches of 32 leave 12 over, batches of 256 leave 108; one axis or two."""
  one = evaluate(run, dict(data=8, fsdp=1), batch_size=32)
  assert set(one) == {
      f"combo/{d}_r{k}" for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
  assert one == evaluate(run, dict(data=4, fsdp=2), batch_size=256)


def test_a_bank_takes_its_prior_off_the_captions_scores(run):
  """Image → text alone. The bank here is the split itself; at a scale near zero a prior is a mean."""
  sizes = dict(data=8, fsdp=1)
  plain = evaluate(run, sizes, 256)
  measured = evaluate(run, sizes, 256, bank="combo", bank_scale=1e-4)
  section = run.config.evaluators.retrieval
  captions = sorted(set(run.source("combo").texts(("caption",))))
  with jax.set_mesh(run.mesh):
    variables = run.fresh_state().variables
    text = embed.texts(run, variables, captions, section.text_length, 256, ("{}",))
    image, targets = embed.over_split(
        run, variables, "combo", section.preprocess, "encode_image", ("image",), ("caption",), 256
    )
  scores = run.system.similarity(jnp.asarray(image), jnp.asarray(text))
  relevant = jnp.array([[c == caption for c in captions] for caption in targets["caption"]])
  expected = recalls(np.asarray(ranks(scores - scores.mean(axis=0), relevant)))
  for name, value in expected.items():
    # A pair that all but ties may fall either way.
    assert measured[f"combo/image_to_text_{name}"] == pytest.approx(value, abs=0.5)
    assert measured[f"combo/text_to_image_{name}"] == plain[f"combo/text_to_image_{name}"]
  assert measured != plain


def test_embeddings_come_in_the_sources_order_without_padding(run):
  with jax.set_mesh(run.mesh):
    variables = run.fresh_state().variables
    ops = run.config.evaluators.retrieval.preprocess
    found, targets = embed.over_split(
        run, variables, "combo", ops, "encode_image", ("image",), ("caption",), 64)
  source = run.source("combo")
  assert targets["caption"].tolist() == [source[i]["caption"] for i in range(len(source))]
  example = run.examples("combo", ops)(403, None)[1]["image"]
  alone = run.system.encode_image(variables, jnp.asarray(example[None]))
  np.testing.assert_allclose(found[403], alone[0], rtol=1e-4, atol=1e-5)


def test_ensembled_prompts_are_the_mean_of_normalised_ones(run):
  with jax.set_mesh(run.mesh):
    variables = run.fresh_state().variables
    names = ["cat", "red apple", "flag of kenya"]
    both = embed.texts(run, variables, names, 16, 8, ("{}", "a picture of {}"))
    each = [
        embed.texts(run, variables, [t.format(n) for n in names], 16, 8)
        for t in ("{}", "a picture of {}")
    ]
  expected = np.mean([e / np.linalg.norm(e, axis=1, keepdims=True) for e in each], axis=0)
  np.testing.assert_allclose(both, expected, rtol=1e-4, atol=1e-5)


def test_zero_shot_with_one_prompt_is_retrieval_of_class_names(run):
  """Retrieval against the class names and zero-shot with the bare prompt are the same measure."""
  ops = run.config.evaluators.retrieval.preprocess
  with jax.set_mesh(run.mesh):
    variables = run.fresh_state().variables
    common = dict(splits=("combo",), preprocess=ops, text_length=16)
    zero_shot = ZeroShot(classes=("combo",), templates=("{}",), **common)(run, variables, draw=False)
    retrieval = Retrieval(gallery=("combo",), **common)(run, variables, draw=False)
  assert zero_shot == {
      "combo/top1": retrieval["combo/image_to_text_r1"],
      "combo/top5": retrieval["combo/image_to_text_r5"],
  }


def test_normalize_is_left_out_for_pictures_to_look_at():
  ops = 'decode|resize(3)|normalize((0.5, 0.5, 0.5), (1, 1, 1))|keep("image")'
  assert pictures.before_normalize(ops) == 'decode|resize(3)|keep("image")'
  assert pictures.before_normalize('decode|normalize') == "decode"
