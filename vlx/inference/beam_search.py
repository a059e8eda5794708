"""Decoding from a language model that is given as one pure function of a state and the last tokens.

  step(state, tokens i32 [rows]) -> (log_probs f32 [rows, vocabulary], state)

`state` is a pytree whose leaves have `rows` as their first axis: one row per sequence. What is the same for
all sequences of an example (annotations of its picture) need not be in it: `step` can close over it, and
row r belongs to example r // beam_size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Float, Int

Step = Callable[[Any, jax.Array], tuple[jax.Array, Any]]


def _gnmt(length, alpha):
  """Wu et al., 2016, eq. 14."""
  return ((5.0 + length) / 6.0) ** alpha


# By what a log-probability is divided; α = 0 is no normalisation, α = 1 of "length" the mean per token.
LENGTH_NORMS = {"gnmt": _gnmt, "length": lambda length, alpha: jnp.asarray(length, jnp.float32) ** alpha}


class _Search(NamedTuple):
  """Sequences that go on, and the best that ended, best first; -inf where there are fewer than beams."""

  length: Int[Array, ""]  # tokens of every live sequence
  tokens: Int[Array, "batch beam"]  # the last of each live sequence
  live_ids: Int[Array, "batch beam length"]
  live: Float[Array, "batch beam"]  # log-probabilities
  ended_ids: Int[Array, "batch beam length"]
  ended: Float[Array, "batch beam"]  # scores
  state: Any


def beam_search(
    step: Step, state: Any, batch: int, *, beam_size: int, start_id: int, end_id: int, max_length: int,
    length_penalty: float = 0.0, length_norm: str = "gnmt",
) -> tuple[Int[Array, "batch beam length"], Float[Array, "batch beam"]]:
  """The best sequences, best first, and their scores.

  Every step takes the best continuations of all live sequences together: those among the first `beam_size`
  that end are kept aside, and the first `beam_size` that do not end live on. An example is done when none of
  its live sequences can come before its kept ones any more, and the search when all examples are; what
  lengthens it for one example so never changes another's result. One beam is greedy search.

  Args:
    step: the model (see above).
    state: before the start token, a row per example: leaves `[batch, …]`.
    batch: examples.
    beam_size: sequences followed for each.
    start_id: the token before the first.
    end_id: the token that ends a sequence.
    max_length: tokens of the longest sequence, with its end token.
    length_penalty: α; 0: sequences are ranked by their log-probability.
    length_norm: "gnmt" (Wu et al., 2016) or "length" (the mean per token at α = 1).

  Returns:
    ids, zeros after the end token, and the scores they are ranked by. Where fewer than `beam_size` ended,
    sequences cut off at `max_length` follow, and after them, where there are no more, zeros at -inf.
  """
  norm = lambda length: LENGTH_NORMS[length_norm](length, length_penalty)

  def undecided(search):
    # Log-probabilities only fall, and no divisor is greater than the longest sequence's.
    possible = search.live.max(axis=1) / norm(max_length)
    return (search.length < max_length) & jnp.any(possible > search.ended.min(axis=1))

  def extend(search):
    log_probs, state = step(search.state, rearrange(search.tokens, "b k -> (b k)"))
    log_probs = rearrange(log_probs, "(b k) v -> b k v", b=batch)
    totals, beams, tokens = _best(search.live[:, :, None] + log_probs, 2 * beam_size)
    ids = _of_beams(search.live_ids, beams).at[:, :, search.length].set(tokens)
    ends = tokens == end_id
    length = search.length + 1

    first = jnp.arange(totals.shape[1]) < beam_size
    scores = jnp.where(ends & first, totals / norm(length), -jnp.inf)
    ended, kept = jax.lax.top_k(jnp.concatenate([search.ended, scores], axis=1), beam_size)
    ended_ids = _of_beams(jnp.concatenate([search.ended_ids, ids], axis=1), kept)

    live, chosen = jax.lax.top_k(jnp.where(ends, -jnp.inf, totals), beam_size)
    origin = jnp.take_along_axis(beams, chosen, axis=1)
    rows = rearrange(jnp.arange(batch)[:, None] * beam_size + origin, "b k -> (b k)")
    return _Search(
        length, jnp.take_along_axis(tokens, chosen, axis=1), _of_beams(ids, chosen), live, ended_ids, ended,
        jax.tree.map(lambda x: x[rows], state),
    )

  shape = (batch, beam_size)
  # All beams start alike: one of them is enough.
  one = jnp.tile(jnp.where(jnp.arange(beam_size) == 0, 0.0, -jnp.inf), (batch, 1))
  search = jax.lax.while_loop(undecided, extend, _Search(
      jnp.int32(0), jnp.full(shape, start_id, jnp.int32), jnp.zeros((*shape, max_length), jnp.int32), one,
      jnp.zeros((*shape, max_length), jnp.int32), jnp.full(shape, -jnp.inf),
      jax.tree.map(lambda x: repeat(x, "b ... -> (b k) ...", k=beam_size), state),
  ))
  count = jnp.isfinite(search.ended).sum(axis=1, keepdims=True)
  slot = jnp.arange(beam_size)
  order = jnp.where(slot < count, slot, beam_size + slot - count)  # the ended, then the live
  scores = jnp.concatenate([search.ended, search.live / norm(search.length)], axis=1)
  scores = jnp.take_along_axis(scores, order, axis=1)
  ids = _of_beams(jnp.concatenate([search.ended_ids, search.live_ids], axis=1), order)
  return jnp.where(jnp.isfinite(scores)[..., None], ids, 0), scores


def _best(
    totals: Float[Array, "batch beam vocabulary"], count: int
) -> tuple[Float[Array, "batch count"], Int[Array, "batch count"], Int[Array, "batch count"]]:
  """The `count` greatest of all beams together: values, beams, tokens.

  They are among the `count` greatest of each beam, and to choose in two rounds takes less time.
  """
  beams, vocabulary = totals.shape[1:]
  values, tokens = jax.lax.top_k(totals, min(count, vocabulary))
  found, index = jax.lax.top_k(rearrange(values, "b k c -> b (k c)"), min(count, beams * values.shape[2]))
  tokens = jnp.take_along_axis(rearrange(tokens, "b k c -> b (k c)"), index, axis=1)
  return found, index // values.shape[2], tokens


def _of_beams(
    x: Int[Array, "batch beam length"], index: Int[Array, "batch chosen"]
) -> Int[Array, "batch chosen length"]:
  return jnp.take_along_axis(x, index[:, :, None], axis=1)


def sample(
    step: Step, state: Any, batch: int, rng: jax.Array, *, start_id: int, end_id: int, max_length: int,
    temperature: float = 1.0,
) -> tuple[Int[Array, "batch length"], Float[Array, "batch"]]:
  """One sequence for each example, drawn word by word, and its log-probability under the model.

  An example's draw depends on its row, not on the batch around it.

  Args:
    step: the model (see above).
    state: before the start token, a row per example.
    batch: examples.
    rng: key.
    start_id: the token before the first.
    end_id: the token that ends a sequence; zeros follow it.
    max_length: tokens of the longest sequence, with its end token.
    temperature: by which log-probabilities are divided before drawing; below 1: likelier words yet likelier.
  """
  keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(batch))

  def extend(carry, position):
    state, tokens, ended, total = carry
    log_probs, state = step(state, tokens)
    here = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
    drawn = jax.vmap(jax.random.categorical)(here, log_probs / temperature)
    tokens = jnp.where(ended, 0, drawn).astype(jnp.int32)
    gained = jnp.take_along_axis(log_probs, drawn[:, None], axis=1)[:, 0]
    total = total + jnp.where(ended, 0.0, gained)
    return (state, tokens, ended | (tokens == end_id), total), tokens

  start = (state, jnp.full(batch, start_id, jnp.int32), jnp.zeros(batch, bool), jnp.zeros(batch))
  (_, _, _, total), ids = jax.lax.scan(extend, start, jnp.arange(max_length))
  return rearrange(ids, "t b -> b t"), total
