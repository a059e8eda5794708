"""Continues texts token by token, with a cache.

One program reads prompts, padded to a power of two, and another decodes a chunk of tokens: each is
compiled once for all prompts up to that length. Rows stop by themselves; a row's text is a function
of its prompt and its seed, whatever the batch. A second turn goes on in the cache of the first.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vlx.core.capabilities import GeneratesText
from vlx.core.errors import UserError
from vlx.core.system import Variables
from vlx.inference.decoding import Sampled, sample_first, sample_more
from vlx.inference.sampling import Sampling

SHORTEST = 32  # what the shortest prompts are padded to


def generate(
  system: GeneratesText,
  variables: Variables,
  prompts: Sequence[Sequence[int]],
  *,
  max_tokens: int,
  sampling: Sampling = Sampling(),
  seeds: int | Sequence[int] = 0,
  stop_ids: Sequence[int] = (),
  chunk: int = 16,
  on_tokens: Callable[[list[list[int]]], None] | None = None,
  inputs: Mapping[str, np.ndarray] = {},
  cache: Any = None,
  slots: int = 0,
) -> tuple[list[list[int]], Any]:
  """(the tokens that follow each prompt, without the stop token; the cache that has read the prompts and these).

  Args:
    system: a language model; in the form of `for_decoding`, where it has one.
    variables: of this form.
    prompts: token ids, one or more in each row.
    max_tokens: at most so many in each row.
    sampling: how they are sampled.
    seeds: of each row, or one for all: equal prompts with equal seeds get equal texts.
    stop_ids: a row ends at any of these.
    chunk: how many tokens are decoded between two calls of `on_tokens`.
    on_tokens: is given the new tokens of each row.
    inputs: what the system reads with the prompt beside the text: images.
    cache: of an earlier call, whose turn this one follows; a fresh one where None.
    slots: of a fresh cache, for the turns to come; as many as this one needs where 0.

  Raises:
    UserError: for an empty prompt, and for one that leaves no room for `max_tokens`.
  """
  lengths = np.array([len(prompt) for prompt in prompts])
  held = np.zeros_like(lengths) if cache is None else np.asarray(cache.lengths)
  room = system.context_length
  if lengths.min() == 0:
    raise UserError("a prompt has no tokens")
  if (held + lengths).max() + max_tokens > room:
    before = f" after {held.max()}" if cache is not None else ""
    raise UserError(
      f"{lengths.max()} tokens{before} and {max_tokens} to come: this model reads {room} in all"
    )
  bound = min(max(SHORTEST, 1 << int(lengths.max() - 1).bit_length()), room)
  text = np.zeros((len(prompts), bound), np.int32)
  for row, prompt in zip(text, prompts):
    row[: len(prompt)] = prompt
  seeds = np.broadcast_to(np.asarray(seeds, np.int32), len(prompts))
  stops = np.asarray(sorted(stop_ids), np.int32)
  if cache is None:
    needed = min(bound + -(-max_tokens // SHORTEST) * SHORTEST, room)
    cache = system.empty_cache(len(prompts), max(needed, min(slots, room)))
  read = {**inputs, "text": text, "text_mask": np.arange(bound) < lengths[:, None]}
  state = _prefill(system, sampling, variables, read, cache, seeds, stops)
  texts, count = [[] for _ in prompts], 1
  tokens, real = state.last[:, None], ~state.done[:, None]
  while True:
    new = [row[mask].tolist() for row, mask in zip(*jax.device_get((tokens, real)))]
    for so_far, more in zip(texts, new):
      so_far += more
    if on_tokens is not None and any(new):
      on_tokens(new)
    if count == max_tokens or np.all(state.done):
      return texts, state.state
    limit = min(chunk, max_tokens - count)
    state, (tokens, real) = _decode(system, sampling, chunk, variables, state, limit, seeds, stops)
    count += limit


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prefill(system, sampling, variables, inputs, cache, seeds, stops) -> Sampled:
  text, text_mask = inputs["text"], inputs["text_mask"]
  logits, cache = system.extend_cache(variables, inputs, cache)
  rows = jnp.arange(len(text))[:, None]
  counted = logits.shape[1] if sampling.repetition_penalty != 1 else 0
  seen = jnp.zeros((len(text), counted), bool).at[rows, text].max(text_mask, mode="drop")
  return sample_first(sampling, logits, cache, cache.lengths, seen, seeds, stops)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _decode(system, sampling, chunk, variables, state, limit, seeds, stops):
  def step(cache, tokens, going):
    return system.extend_cache(
      variables, {"text": tokens[:, None], "text_mask": going[:, None]}, cache
    )

  return sample_more(step, sampling, state, limit, chunk, seeds, stops)
