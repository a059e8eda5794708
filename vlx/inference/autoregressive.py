"""Continues texts token by token, with a cache.

One program reads prompts, padded to a power of two, and another decodes a chunk of tokens: each is compiled
once for all prompts up to that length. Rows stop by themselves; a row's text is a function of its prompt and
its seed, whatever the batch.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vlx.core.errors import UserError
from vlx.inference.sampling import Sampling
from vlx.core.system import Variables

SHORTEST = 32  # what the shortest prompts are padded to


class Autoregressive(Protocol):
  """What a system has to have; hashable."""

  @property
  def context_length(self) -> int:
    """How many tokens it reads."""

  def empty_cache(self, batch: int, slots: int) -> Any:
    """For texts of up to `slots` tokens; its `lengths` are the tokens that it holds of each."""

  def read(
      self, variables: Variables, text: jax.Array, text_mask: jax.Array, cache: Any
  ) -> tuple[Float[Array, "batch vocab"], Any]:
    """Logits of what comes after the last real token of each row, and the cache with the texts in it."""


class State(NamedTuple):
  """Between two chunks."""

  cache: Any
  last: Int[Array, " batch"]  # the token of each row that the cache does not hold yet
  seen: Bool[Array, "batch vocab"]  # the tokens of each row, prompt and all; `vocab` is 0 where nobody asks
  done: Bool[Array, " batch"]


def generate(
    system: Autoregressive,
    variables: Variables,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    sampling: Sampling = Sampling(),
    seeds: int | Sequence[int] = 0,
    stop_ids: Sequence[int] = (),
    chunk: int = 16,
    on_tokens: Callable[[list[list[int]]], None] | None = None,
) -> list[list[int]]:
  """The tokens that follow each prompt, without the stop token.

  Args:
    system: a language model; in the form of `for_decoding`, where it has one.
    variables: of this form.
    prompts: token ids, one or more in each row.
    max_tokens: at most so many in each row.
    sampling: how they are drawn.
    seeds: of each row, or one for all: equal prompts with equal seeds get equal texts.
    stop_ids: a row ends at any of these.
    chunk: how many tokens are decoded between two calls of `on_tokens`.
    on_tokens: is given the new tokens of each row.

  Raises:
    UserError: for an empty prompt, and for one that leaves no room for `max_tokens`.
  """
  lengths = np.array([len(prompt) for prompt in prompts])
  room = system.context_length
  if lengths.min() == 0:
    raise UserError("a prompt has no tokens")
  if lengths.max() + max_tokens > room:
    raise UserError(f"{lengths.max()} tokens and {max_tokens} to come: this model reads {room} in all")
  bound = min(max(SHORTEST, 1 << int(lengths.max() - 1).bit_length()), room)
  text = np.zeros((len(prompts), bound), np.int32)
  for row, prompt in zip(text, prompts):
    row[: len(prompt)] = prompt
  seeds = np.broadcast_to(np.asarray(seeds, np.int32), len(prompts))
  stops = np.asarray(sorted(stop_ids), np.int32)
  slots = min(bound + -(-max_tokens // SHORTEST) * SHORTEST, room)
  text_mask = np.arange(bound) < lengths[:, None]
  state = _prefill(system, sampling, slots, variables, text, text_mask, seeds, stops)
  texts, count = [[] for _ in prompts], 1
  tokens, real = state.last[:, None], ~state.done[:, None]
  while True:
    new = [row[mask].tolist() for row, mask in zip(*jax.device_get((tokens, real)))]
    for so_far, more in zip(texts, new):
      so_far += more
    if on_tokens is not None and any(new):
      on_tokens(new)
    if count == max_tokens or np.all(state.done):
      return texts
    limit = min(chunk, max_tokens - count)
    state, (tokens, real) = _decode(system, sampling, chunk, variables, state, limit, seeds, stops)
    count += limit


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _prefill(system, sampling, slots, variables, text, text_mask, seeds, stops) -> State:
  logits, cache = system.read(variables, text, text_mask, system.empty_cache(len(text), slots))
  rows = jnp.arange(len(text))[:, None]
  counted = logits.shape[1] if sampling.repetition_penalty != 1 else 0
  seen = jnp.zeros((len(text), counted), bool).at[rows, text].max(text_mask, mode="drop")
  return _next(sampling, logits, State(cache, text[:, 0], seen, jnp.zeros(len(text), bool)), seeds, stops)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _decode(system, sampling, chunk, variables, state, limit, seeds, stops):
  """(the state after `limit` ≤ `chunk` tokens, (tokens `[batch, chunk]`, which of them are real))."""
  batch = len(state.last)

  def more(carry):
    state, tokens, real, i = carry
    return (i < limit) & ~state.done.all()

  def step(carry):
    state, tokens, real, i = carry
    logits, cache = system.read(variables, state.last[:, None], ~state.done[:, None], state.cache)
    state = _next(sampling, logits, state._replace(cache=cache), seeds, stops)
    return state, tokens.at[:, i].set(state.last), real.at[:, i].set(~state.done), i + 1

  tokens, real = jnp.zeros((batch, chunk), jnp.int32), jnp.zeros((batch, chunk), bool)
  state, *drawn, _ = jax.lax.while_loop(more, step, (state, tokens, real, 0))
  return state, drawn


def _next(sampling, logits, state: State, seeds, stops) -> State:
  """With one more token drawn in each row; a stop token ends its row."""
  last = sampling.draw(logits, state.seen, seeds, state.cache.lengths)
  done = state.done | (last[:, None] == stops).any(axis=1)
  seen = state.seen.at[jnp.arange(len(last)), last].set(True, mode="drop")
  return State(state.cache, last, seen, done)
