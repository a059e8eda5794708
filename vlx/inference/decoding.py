"""Decoding from a model that is given as one pure function of a state and the last tokens.

  step(state, tokens i32 [rows]) -> (logits f32 [rows, vocabulary], state)

`state` is a pytree whose leaves have `rows` as their first axis: one row per sequence. What is the
same for all sequences of an example (annotations of its image) need not be in it: `step` can close
over it, and in beam search row r belongs to example r // beam_size.

`sample_more` is the loop of sampling, greedy search among it, `beam_search` that of beams, whose rows
change places.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float, Int

from vlx.core.errors import UserError
from vlx.inference.sampling import Sampling

Step = Callable[..., tuple[jax.Array, Any]]


class Sampled(NamedTuple):
  """Sequences that are being sampled."""

  state: Any  # of the model, which has read all tokens but the last
  last: Int[Array, " rows"]
  positions: Int[Array, " rows"]  # of the last token of each row
  seen: Bool[Array, "rows vocab"]  # the tokens of each row; `vocab` is 0 where nobody asks
  done: Bool[Array, " rows"]


def sample_first(
  sampling: Sampling,
  logits: Float[Array, "rows vocab"],
  state: Any,
  positions: Int[Array, " rows"],
  seen: Bool[Array, "rows vocab_or_none"],
  seeds: Int[Array, " rows"],
  stops: Int[Array, " stops"],
) -> Sampled:
  """The first token of each row, by the logits that follow what the model has read; a stop token
  ends its row.

  Args:
    sampling: how tokens are sampled.
    logits: of the tokens at `positions`.
    state: after reading.
    positions: that the tokens will have.
    seen: the tokens of each row so far.
    seeds: of each row.
    stops: tokens at any of which a row ends.
  """
  nobody = jnp.zeros(len(logits), bool)
  return _sampled(
    sampling, logits, Sampled(state, positions, positions, seen, nobody), positions, seeds, stops
  )


def sample_more(
  step: Step,
  sampling: Sampling,
  sampled: Sampled,
  limit: Int[Array, ""] | int,
  chunk: int,
  seeds: Int[Array, " rows"],
  stops: Int[Array, " stops"],
) -> tuple[Sampled, tuple[Int[Array, "rows chunk"], Bool[Array, "rows chunk"]]]:
  """`limit` ≤ `chunk` more tokens of each row that is not done: (sequences, (tokens, which of them
  are real)).

  Args:
    step: the model; (state, tokens, which rows go on) → (logits, state).
    sampling: how tokens are sampled.
    sampled: so far.
    limit: how many to sample.
    chunk: the length of the arrays.
    seeds: of each row.
    stops: tokens at any of which a row ends.
  """
  rows = len(sampled.last)

  def going(carry):
    sampled, _, _, i = carry
    return (i < limit) & ~sampled.done.all()

  def one(carry):
    sampled, tokens, real, i = carry
    logits, state = step(sampled.state, sampled.last, ~sampled.done)
    positions = sampled.positions + ~sampled.done
    sampled = _sampled(sampling, logits, sampled._replace(state=state), positions, seeds, stops)
    return sampled, tokens.at[:, i].set(sampled.last), real.at[:, i].set(~sampled.done), i + 1

  tokens, real = jnp.zeros((rows, chunk), jnp.int32), jnp.zeros((rows, chunk), bool)
  sampled, *found, _ = jax.lax.while_loop(going, one, (sampled, tokens, real, 0))
  return sampled, tuple(found)


def _sampled(sampling, logits, sampled: Sampled, positions, seeds, stops) -> Sampled:
  last = sampling.sample(logits, sampled.seen, seeds, positions)
  done = sampled.done | (last[:, None] == stops).any(axis=1)
  seen = sampled.seen.at[jnp.arange(len(last)), last].set(True, mode="drop")
  return Sampled(sampled.state, last, positions, seen, done)


def _gnmt(length, alpha):
  """Wu et al., 2016, eq. 14."""
  return ((5.0 + length) / 6.0) ** alpha


# By what a log-probability is divided; α = 0 is no normalisation, α = 1 of "length" the mean per
# token.
LENGTH_NORMS = {
  "gnmt": _gnmt,
  "length": lambda length, alpha: jnp.asarray(length, jnp.float32) ** alpha,
}


@dataclasses.dataclass(frozen=True)
class Search:
  """How beam search goes; one beam is greedy search.

  Attributes:
    beam_size: sequences followed for each example.
    max_length: tokens of the longest sequence, with its end token.
    length_penalty: α; 0: sequences are ranked by their log-probability.
    length_norm: "gnmt" (Wu et al., 2016) or "length" (the mean per token at α = 1).
  """

  beam_size: int = 20
  max_length: int = 20
  length_penalty: float = 0.0
  length_norm: str = "gnmt"

  def __post_init__(self):
    if self.beam_size < 1 or self.max_length < 1:
      raise UserError(
        f"beam_size and max_length must be at least 1, not {self.beam_size} and {self.max_length}"
      )
    if self.length_norm not in LENGTH_NORMS:
      raise UserError(f"length_norm is one of {', '.join(LENGTH_NORMS)}, not {self.length_norm!r}")


class _Live(NamedTuple):
  """Sequences that go on, and the best that ended, best first; -inf where there are fewer than
  beams.
  """

  length: Int[Array, ""]  # tokens of every live sequence
  tokens: Int[Array, "batch beam"]  # the last of each live sequence
  live_ids: Int[Array, "batch beam length"]
  live: Float[Array, "batch beam"]  # log-probabilities
  ended_ids: Int[Array, "batch beam length"]
  ended: Float[Array, "batch beam"]  # scores
  state: Any


def beam_search(
  step: Step, state: Any, batch: int, search: Search, *, start_id: int, end_id: int
) -> tuple[Int[Array, "batch beam length"], Float[Array, "batch beam"]]:
  """The best sequences, best first, and their scores.

  Every step takes the best continuations of all live sequences together: those among the first
  `beam_size` that end are kept aside, and the first `beam_size` that do not end live on. An example
  is done when none of its live sequences can come before its kept ones any more, and the search
  when all examples are; what lengthens it for one example so never changes another's result. One
  beam is greedy search.

  Args:
    step: the model (see above).
    state: before the start token, a row per example: leaves `[batch, …]`.
    batch: examples.
    search: how to go about it.
    start_id: the token before the first.
    end_id: the token that ends a sequence.

  Returns:
    ids, zeros after the end token, and the scores they are ranked by. Where fewer than `beam_size`
    ended, sequences cut off at `max_length` follow, and after them, where there are no more, zeros
    at -inf.
  """
  beam_size, max_length = search.beam_size, search.max_length
  norm = lambda length: LENGTH_NORMS[search.length_norm](length, search.length_penalty)

  def undecided(live):
    # Log-probabilities only fall, and no divisor is greater than the longest sequence's.
    possible = live.live.max(axis=1) / norm(max_length)
    return (live.length < max_length) & jnp.any(possible > live.ended.min(axis=1))

  def extend(found):
    logits, state = step(found.state, rearrange(found.tokens, "b k -> (b k)"))
    log_probs = rearrange(jax.nn.log_softmax(logits), "(b k) v -> b k v", b=batch)
    totals, beams, tokens = _best(found.live[:, :, None] + log_probs, 2 * beam_size)
    ids = _of_beams(found.live_ids, beams).at[:, :, found.length].set(tokens)
    ends = tokens == end_id
    length = found.length + 1

    first = jnp.arange(totals.shape[1]) < beam_size
    scores = jnp.where(ends & first, totals / norm(length), -jnp.inf)
    ended, kept = jax.lax.top_k(jnp.concatenate([found.ended, scores], axis=1), beam_size)
    ended_ids = _of_beams(jnp.concatenate([found.ended_ids, ids], axis=1), kept)

    live, chosen = jax.lax.top_k(jnp.where(ends, -jnp.inf, totals), beam_size)
    origin = jnp.take_along_axis(beams, chosen, axis=1)
    rows = rearrange(jnp.arange(batch)[:, None] * beam_size + origin, "b k -> (b k)")
    return _Live(
      length,
      jnp.take_along_axis(tokens, chosen, axis=1),
      _of_beams(ids, chosen),
      live,
      ended_ids,
      ended,
      jax.tree.map(lambda x: x[rows], state),
    )

  shape = (batch, beam_size)
  # All beams start alike: one of them is enough.
  one = jnp.tile(jnp.where(jnp.arange(beam_size) == 0, 0.0, -jnp.inf), (batch, 1))
  found = jax.lax.while_loop(
    undecided,
    extend,
    _Live(
      jnp.int32(0),
      jnp.full(shape, start_id, jnp.int32),
      jnp.zeros((*shape, max_length), jnp.int32),
      one,
      jnp.zeros((*shape, max_length), jnp.int32),
      jnp.full(shape, -jnp.inf),
      jax.tree.map(lambda x: repeat(x, "b ... -> (b k) ...", k=beam_size), state),
    ),
  )
  count = jnp.isfinite(found.ended).sum(axis=1, keepdims=True)
  slot = jnp.arange(beam_size)
  order = jnp.where(slot < count, slot, beam_size + slot - count)  # the ended, then the live
  scores = jnp.concatenate([found.ended, found.live / norm(found.length)], axis=1)
  scores = jnp.take_along_axis(scores, order, axis=1)
  ids = _of_beams(jnp.concatenate([found.ended_ids, found.live_ids], axis=1), order)
  return jnp.where(jnp.isfinite(scores)[..., None], ids, 0), scores


def _best(
  totals: Float[Array, "batch beam vocabulary"], count: int
) -> tuple[Float[Array, "batch count"], Int[Array, "batch count"], Int[Array, "batch count"]]:
  """The `count` greatest of all beams together: values, beams, tokens.

  They are among the `count` greatest of each beam, and to choose in two rounds takes less time.
  """
  beams, vocabulary = totals.shape[1:]
  values, tokens = jax.lax.top_k(totals, min(count, vocabulary))
  found, index = jax.lax.top_k(
    rearrange(values, "b k c -> b (k c)"), min(count, beams * values.shape[2])
  )
  tokens = jnp.take_along_axis(rearrange(tokens, "b k c -> b (k c)"), index, axis=1)
  return found, index // values.shape[2], tokens


def _of_beams(
  x: Int[Array, "batch beam length"], index: Int[Array, "batch chosen"]
) -> Int[Array, "batch chosen length"]:
  return jnp.take_along_axis(x, index[:, :, None], axis=1)
