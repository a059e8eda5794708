"""Beam search against exhaustive search, greedy search and the model's own scores; sampling."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlx.core.errors import UserError
from vlx.inference.decoding import LENGTH_NORMS, Search, beam_search, sample_first, sample_more
from vlx.inference.sampling import Sampling

START, END, VOCABULARY, LENGTH = 0, 1, 4, 4


def model(seed, examples, vocabulary=VOCABULARY, end_bias=0.0):
  """A small recurrent model with random weights: the state of each example is its own."""
  keys = jax.random.split(jax.random.key(seed), 4)
  mix = jax.random.normal(keys[0], (8, 8))
  embedding = 2 * jax.random.normal(keys[1], (vocabulary, 8))
  head = 1.5 * jax.random.normal(keys[2], (8, vocabulary))

  def step(state, tokens):
    hidden = jnp.tanh(state["hidden"] @ mix + embedding[tokens])
    return jax.nn.log_softmax((hidden @ head).at[:, END].add(end_bias)), {"hidden": hidden}

  return step, {"hidden": jax.random.normal(keys[3], (examples, 8))}


def search(step, state, beam_size, max_length=LENGTH, **kwargs):
  how = Search(beam_size, max_length, **kwargs)
  run = jax.jit(
    functools.partial(
      beam_search, step, batch=len(state["hidden"]), search=how, start_id=START, end_id=END
    )
  )
  ids, scores = run(state)
  return np.asarray(ids), np.asarray(scores)


def rescored(step, state, ids):
  """Log-probability of sequences `[N, T]`, each under the state of its row, and their lengths."""
  tokens, total, alive, length = (
    jnp.full(len(ids), START),
    0.0,
    np.ones(len(ids), bool),
    np.zeros(len(ids)),
  )
  for t in range(ids.shape[1]):
    log_probs, state = step(state, tokens)
    tokens = jnp.asarray(ids[:, t])
    total = total + np.where(alive, np.asarray(log_probs)[np.arange(len(ids)), ids[:, t]], 0.0)
    length += alive
    alive &= ids[:, t] != END
  return total, length


def every_sequence(length):
  """All that end within `length` tokens, zeros after the end."""
  words = [w for w in range(VOCABULARY) if w != END]
  return np.array(
    [
      [*body, END, *[0] * (length - 1 - n)]
      for n in range(length)
      for body in itertools.product(words, repeat=n)
    ]
  )


@pytest.mark.parametrize("norm,alpha", [("gnmt", 0.0), ("gnmt", 0.9), ("length", 1.0)])
def test_a_wide_beam_is_exhaustive_search(norm, alpha):
  step, state = model(0, examples=3)
  everything = every_sequence(LENGTH)
  beam_size = VOCABULARY ** (LENGTH - 1) * 2
  ids, scores = search(step, state, beam_size, length_penalty=alpha, length_norm=norm)
  for row in range(3):
    of_row = {"hidden": jnp.tile(state["hidden"][row], (len(everything), 1))}
    total, length = rescored(step, of_row, everything)
    wanted = total / np.asarray(LENGTH_NORMS[norm](length, alpha))
    order = np.argsort(-wanted)
    np.testing.assert_allclose(scores[row, : len(order)], wanted[order], rtol=1e-5)
    np.testing.assert_array_equal(ids[row, : len(order)], everything[order])


def test_one_beam_is_greedy_search():
  for seed in range(5):
    step, state = model(seed, examples=8, vocabulary=6)
    ids, scores = search(step, state, 1, max_length=10)
    tokens, alive, greedy, hidden = np.full(8, START), np.ones(8, bool), [], state
    for _ in range(10):
      log_probs, hidden = step(hidden, jnp.asarray(tokens))
      tokens = np.asarray(log_probs.argmax(axis=1))
      greedy.append(np.where(alive, tokens, 0))
      alive &= tokens != END
    np.testing.assert_array_equal(ids[:, 0], np.stack(greedy, axis=1))
    np.testing.assert_allclose(scores[:, 0], rescored(step, state, ids[:, 0])[0], rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_scores_are_the_models_own_and_in_order(alpha):
  step, state = model(3, examples=5, vocabulary=12)
  ids, scores = search(step, state, 6, max_length=8, length_penalty=alpha)
  ended = (ids == END).any(axis=2)
  assert ended.any() and (np.diff(scores, axis=1)[ended[:, 1:]] <= 0).all()
  for beam in range(6):
    total, length = rescored(step, state, ids[:, beam])
    np.testing.assert_allclose(
      scores[:, beam], total / np.asarray(LENGTH_NORMS["gnmt"](length, alpha)), rtol=1e-5
    )
  for row in ids:
    assert len({tuple(sequence) for sequence in row}) == 6  # no sequence twice


def test_a_result_does_not_depend_on_the_batch_or_the_room_to_its_right():
  step, state = model(1, examples=7, vocabulary=12, end_bias=3.0)
  ids, scores = search(step, state, 5, max_length=30)
  assert (ids[:, :, -1] == 0).all()  # all ended before: more room changes nothing
  for row in range(7):
    alone_ids, alone = search(step, {"hidden": state["hidden"][row : row + 1]}, 5, max_length=40)
    np.testing.assert_array_equal(alone_ids[0, :, :30], ids[row])
    np.testing.assert_allclose(alone[0], scores[row], rtol=1e-5)


def test_sequences_that_did_not_end_come_last():
  """A model that never ends but for one word of example 0."""
  table = jnp.log(
    jnp.array(
      [[0.0, 0.0, 0.5, 0.5], [0.0, 1.0, 0.0, 0.0], [0.3, 0.1, 0.3, 0.3], [0.5, 0.0, 0.5, 0.0]]
    )
  )
  step = lambda state, tokens: (table[tokens], state)
  ids, scores = search(step, {"hidden": jnp.zeros((1, 1))}, 3, max_length=2)
  # [2, 1] is not among the three best continuations
  np.testing.assert_array_equal(ids[0, 0], [3, 0])
  np.testing.assert_allclose(np.exp(scores[0]), [0.25, 0.25, 0.15], rtol=1e-5)
  ids, scores = search(step, {"hidden": jnp.zeros((1, 1))}, 7, max_length=2)
  np.testing.assert_array_equal(ids[0, 0], [2, END])
  np.testing.assert_allclose(np.exp(scores[0, :6]), [0.05, 0.25, 0.25, 0.15, 0.15, 0.15], rtol=1e-5)
  assert scores[0, 6] == -np.inf and (ids[0, 6] == 0).all()


def test_early_stop_takes_no_more_steps_than_needed():
  """Once the end is certain, one more step: the live beams cannot win any more."""
  steps = []

  def step(state, tokens):
    jax.debug.callback(lambda: steps.append(1))
    return jnp.broadcast_to(
      jnp.log(jnp.array([0.004, 0.99, 0.003, 0.003])), (len(tokens), 4)
    ), state

  search(step, {"hidden": jnp.zeros((2, 1))}, 2, max_length=50)
  jax.effects_barrier()
  assert len(steps) <= 3


def test_samples_have_the_models_distribution_and_end_at_the_end():
  step, state = model(2, examples=1)
  draws = 20_000
  many = {"hidden": jnp.tile(state["hidden"], (draws, 1))}
  sampling, stops, seeds = Sampling(temperature=0.7), jnp.array([END]), jnp.arange(draws)

  @jax.jit
  def run(state):
    logits, state = step(state, jnp.full(draws, START))
    drawn = sample_first(
      sampling,
      logits,
      state,
      jnp.zeros(draws, jnp.int32),
      jnp.zeros((draws, 0), bool),
      seeds,
      stops,
    )
    more, found = sample_more(
      lambda s, tokens, going: step(s, tokens), sampling, drawn, 2, 2, seeds, stops
    )
    return drawn, more, found

  drawn, more, (tokens, real) = jax.tree.map(np.asarray, run(many))
  log_probs, _ = step(state, jnp.array([START]))
  expected = np.asarray(jax.nn.softmax(log_probs[0] / 0.7))
  found = np.bincount(drawn.last, minlength=VOCABULARY) / draws
  assert np.all(np.abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / draws))
  assert not real[drawn.last == END].any()  # what follows the end is not text
  ended = tokens[:, 0] == END
  assert (real[:, 0] == ~((drawn.last == END) | ended)).all() and not real[ended, 1].any()
  np.testing.assert_array_equal(more.positions, 0 + ~(drawn.last == END) + real[:, 0])


@pytest.mark.parametrize(
  "fields", [dict(beam_size=0), dict(max_length=0), dict(length_norm="none")]
)
def test_a_search_that_makes_no_sense_is_told(fields):
  with pytest.raises(UserError):
    Search(**fields)
