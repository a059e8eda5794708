"""Ensembles of captioners: the mean of their probabilities, searched; runs gathered into one."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vlx
from tests.models.test_captioning import LENGTH, SECTION, VOCABULARY, batch, made
from vlx.core import capabilities as c
from vlx.core import config as configs
from vlx.core.config import build, load_config, part_of
from vlx.core.errors import UserError
from vlx.core.system import Trains
from vlx.evaluate.runner import Evaluation
from vlx.inference.decoding import Search
from vlx.models.captioning.ensemble import Ensemble
from vlx.models.captioning.show_and_tell import ShowAndTell
from vlx.models.captioning.show_attend_tell import ShowAttendTell
from vlx.train import initialize, loop
from vlx.train.run import Run


def gathered(*members):
  """(an ensemble, its variables) of (system, variables)."""
  section = {f"member_{i}": part_of(system) for i, (system, _) in enumerate(members, start=1)}
  variables = {
    kind: {f"member_{i}": v[kind] for i, (_, v) in enumerate(members, start=1)}
    for kind in ("params", "state")
  }
  return build(Ensemble, section, "model"), variables


def scaled(member, factor):
  """The same system with other variables."""
  system, variables = member
  return system, {**variables, "params": jax.tree.map(lambda x: factor * x, variables["params"])}


@functools.cache
def members():
  first = made(ShowAndTell)
  return first, scaled(first, -1.5), made(ShowAttendTell)


def probabilities(member, image, text):
  system, variables = member
  logits = system.network.apply({"params": variables["params"]}, image, text, method="logits")
  return np.asarray(jax.nn.softmax(logits), np.float64)


def captions(system, variables, image, search):
  return jax.jit(functools.partial(system.caption, search=search))(variables, {"image": image})


def test_an_ensemble_of_one_is_the_model():
  member, image = members()[0], batch()["image"]
  ids, scores = captions(*member, image, Search(3, LENGTH))
  found_ids, found_scores = captions(*gathered(member), image, Search(3, LENGTH))
  np.testing.assert_array_equal(found_ids, ids)
  np.testing.assert_allclose(found_scores, scores, rtol=1e-5)


def test_its_probability_is_the_mean_of_its_members_by_hand():
  """In the loss, all at once, and in the scores of a search, word by word, of two kinds of member."""
  data = batch()
  system, variables = gathered(*members())
  mean = np.mean([probabilities(m, data["image"], data["text"]) for m in members()], axis=0)
  targets, mask = np.asarray(data["text"])[:, 1:], np.asarray(data["text_mask"])[:, 1:]
  chosen = np.log(np.take_along_axis(mean, targets[..., None], axis=-1)[..., 0])
  terms, _ = system.loss(variables, data, jax.random.key(0), step=0, train=True, frozen=frozenset())
  np.testing.assert_allclose(terms["nats_per_token"].mean, -chosen[mask].mean(), rtol=1e-5)


def test_beams_of_two_are_a_search_of_all_sentences():
  length, image = 3, batch(rows=2)["image"]
  two = members()[::2]
  words = [w for w in range(VOCABULARY) if w != 1]
  ended = [
    [*body, 1, *[0] * (length - 1 - n)]
    for n in range(length)
    for body in itertools.product(words, repeat=n)
  ]
  text = np.pad(np.array(ended), ((0, 0), (1, 0)))
  real = np.cumsum(text == 1, axis=1) - (text == 1) == 0
  ids, scores = captions(*gathered(*two), image, Search(len(words) ** 2 * 2, length))
  for row in range(2):
    images = jnp.broadcast_to(image[row], (len(text), *image.shape[1:]))
    mean = np.mean([probabilities(m, images, jnp.asarray(text)) for m in two], axis=0)
    log_p = np.log(np.take_along_axis(mean, text[:, 1:, None], axis=-1)[..., 0])
    total = np.where(real[:, 1:], log_p, 0.0).sum(axis=1)
    best = np.argsort(-total)[:5]
    np.testing.assert_array_equal(ids[row, :5], text[best, 1:])
    np.testing.assert_allclose(scores[row, :5], total[best], rtol=1e-5)


def test_it_can_what_its_members_can_and_refuses_those_that_do_not_fit():
  system, variables = gathered(*members())
  assert c.of(system) == ["CaptionsImages"] and c.has(system, Trains)
  nested, _ = gathered((system, variables), members()[0])
  assert nested.vocab_size == VOCABULARY
  for fields, message in (
    (dict(vocab_size=8), "the same vocab_size: 9 of member_1, 8 of member_2"),
    (dict(end_id=2), "the same end_id"),
    (dict(text_length=9), "the same inputs"),
  ):
    other = build(ShowAndTell, {**SECTION, **fields}, "model")
    with pytest.raises(UserError, match=message):
      gathered(members()[0], (other, {"params": {}, "state": {}}))
  vit = configs.part_from("configs/vit.py:smoke")
  with pytest.raises(UserError, match="model.member_1: ViT lacks SaysWords"):
    build(Ensemble, {"member_1": vit}, "model")


def small(variant, **changes):
  found = load_config(f"configs/show_and_tell.py:{variant}")
  common = {
    "data.source": "scenes:40?size=64&held_out=6",
    "data.batch_size": 8,
    "evaluators.captions.splits": ("val",),
    "evaluators.captions.shown": 2,
  }
  found.update_from_flattened_dict({**common, **changes})
  return found


@pytest.mark.slow
def test_runs_are_gathered_without_a_step_and_named_by_their_folders(tmp_path):
  for seed in (1, 2):
    run = Run(small("language_model", steps=2, seed=seed), tmp_path / str(seed))
    loop.train(run, on_evaluate=Evaluation.of(run))
  sources = {f"model.member_{i}.source": str(tmp_path / str(i)) for i in (1, 2)}
  found = small("ensemble", **sources)
  transform = load_config("configs/show_and_tell.py:language_model").data.image_transform
  with found.unlocked():
    del found.model["member_3"]
    found.data.image_transform = transform
  run = Run(found, tmp_path / "both")
  results = loop.train(run, on_evaluate=Evaluation.of(run))
  assert "captions/val/bleu4" in results
  assert json.loads((tmp_path / "both" / "results.json").read_text())["steps"] == 0
  one, both = vlx.load(tmp_path / "1"), vlx.load(tmp_path / "both")
  for i in (1, 2):
    jax.tree.map(
      np.testing.assert_array_equal,
      both.variables["params"][f"member_{i}"],
      vlx.load(tmp_path / str(i)).variables["params"],
    )
  image = np.zeros((64, 64, 3), np.uint8)
  assert len(both.caption(image, Search(2, 5))) == len(one.caption(image, Search(2, 5)))
  # Other words, or images in another form, are refused.
  words = tmp_path / "2" / "tokenizer.json"
  words.write_text(words.read_text().replace('"a"', '"zzz"'))
  with pytest.raises(UserError, match="different tokenizers: their words do not agree"):
    initialize.tokenizer_of_parts(run.config)
  with found.unlocked():
    found.data.image_transform = "decode|resize(64)|normalize"
  with pytest.raises(UserError, match="takes images by"):
    initialize.tokenizer_of_parts(initialize.resolve(found))
