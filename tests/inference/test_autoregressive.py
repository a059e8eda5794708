"""Decoding with a cache against the same by whole forward passes; rows that do not know of one
another.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import contract
from vlx.core.errors import UserError
from vlx.inference import autoregressive
from vlx.inference.sampling import Sampling
from vlx.models.language.llama import LanguageModel, LLaMA

SYSTEM = LanguageModel(
  LLaMA(
    vocab_size=40,
    width=16,
    depth=2,
    num_heads=4,
    num_groups=2,
    mlp_dim=24,
    context_length=64,
    epsilon=1e-5,
    tie_embeddings=True,
  )
)
PROMPTS = [[5, 9, 2, 30, 7], [11], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]]
NEW = 12


def generate(*args, **how):
  return autoregressive.generate(*args, **how)[0]


@pytest.fixture(scope="module")
def model():
  shapes = contract.shapes(SYSTEM)
  rng = np.random.default_rng(1)
  variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), jnp.float32), shapes)
  return SYSTEM.for_decoding(variables), variables


@pytest.fixture(scope="module")
def next_logits(model):
  """Logits after a text, by a whole forward pass of the network as it is trained."""
  whole = jax.jit(SYSTEM.token_logits)

  def function(tokens):
    text = np.zeros((1, 32), np.int32)
    text[0, : len(tokens)] = tokens
    return np.asarray(whole(model[1], text)[0, len(tokens) - 1])

  return function


def by_whole_passes(next_logits, prompt, choose):
  tokens = list(prompt)
  for _ in range(NEW):
    tokens.append(choose(next_logits(tokens), tokens))
  return tokens[len(prompt) :]


def test_greedy_is_the_argmax_of_teacher_forced_logits(model, next_logits):
  expected = [
    by_whole_passes(next_logits, p, lambda logits, _: int(logits.argmax())) for p in PROMPTS
  ]
  assert generate(*model[0], PROMPTS, max_tokens=NEW) == expected
  assert len({tuple(text) for text in expected}) == 3
  # In the form of training too.
  assert generate(SYSTEM, model[1], PROMPTS, max_tokens=NEW) == expected


def test_repetition_is_penalized_over_prompt_and_text(model, next_logits):
  def choose(logits, tokens):
    for token in set(tokens):
      logits = logits.copy()
      logits[token] = logits[token] / 5 if logits[token] > 0 else logits[token] * 5
    return int(logits.argmax())

  expected = [by_whole_passes(next_logits, p, choose) for p in PROMPTS]
  assert (
    generate(*model[0], PROMPTS, max_tokens=NEW, sampling=Sampling(repetition_penalty=5.0))
    == expected
  )
  assert expected != generate(*model[0], PROMPTS, max_tokens=NEW)


def test_a_row_does_not_depend_on_its_batch(model):
  how = Sampling(temperature=1.0, top_k=20, top_p=0.95, repetition_penalty=1.1)
  run = lambda prompts, seeds: generate(
    *model[0], prompts, max_tokens=NEW, sampling=how, seeds=seeds
  )
  together = run(PROMPTS, [3, 4, 5])
  assert together == [run([p], [s])[0] for p, s in zip(PROMPTS, [3, 4, 5])]
  assert together == run(PROMPTS[::-1], [5, 4, 3])[::-1]
  assert run(PROMPTS[:1] * 2, [3, 8])[1] != together[0] == run(PROMPTS[:1] * 2, [8, 3])[1]


def test_each_row_ends_at_its_stop_token(model):
  whole = generate(*model[0], PROMPTS, max_tokens=NEW)
  stops = [whole[0][3], whole[2][0]]
  expected = [text[: next((i for i, t in enumerate(text) if t in stops), NEW)] for text in whole]
  assert sorted(map(len, expected))[0] == 0
  assert generate(*model[0], PROMPTS, max_tokens=NEW, stop_ids=stops) == expected


@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_what_is_streamed_is_what_is_returned(model, chunk):
  pieces = []
  texts = generate(*model[0], PROMPTS, max_tokens=NEW, chunk=chunk, on_tokens=pieces.append)
  assert texts == generate(*model[0], PROMPTS, max_tokens=NEW)
  assert [sum(rows, []) for rows in zip(*pieces)] == texts
  assert [len(piece[0]) for piece in pieces] == {1: [1] * 12, 5: [1, 5, 5, 1], 16: [1, 11]}[chunk]


def test_programs_are_compiled_once_for_all_lengths_of_prompts(model):
  def count():
    return autoregressive._prefill._cache_size(), autoregressive._decode._cache_size()

  generate(*model[0], [[1, 2, 3]], max_tokens=20)
  before = count()
  for length, new in ((1, 20), (17, 3), (32, 9), (5, 31)):
    generate(*model[0], [list(range(length))], max_tokens=new)
  assert count() == before
  generate(*model[0], [list(range(33))], max_tokens=20)
  assert count() == (before[0] + 1, before[1])  # the next power of two; as many slots


def test_the_whole_context_can_be_used_and_no_more(model):
  (text,) = generate(*model[0], [list(range(40))], max_tokens=24)
  assert len(text) == 24
  with pytest.raises(UserError, match="40 tokens and 25 to come: this model reads 64"):
    generate(*model[0], [list(range(40))], max_tokens=25)
  with pytest.raises(UserError, match="no tokens"):
    generate(*model[0], [[1], []], max_tokens=1)


def test_a_second_turn_goes_on_in_the_cache_of_the_first(model):
  """Two turns with a cache say what one text of all that was said before would."""
  first, cache = autoregressive.generate(*model[0], PROMPTS, max_tokens=4, slots=64)
  # The last token of each answer is not read yet: the next turn begins with it.
  turns = [[text[-1], 8, 13] for text in first]
  second, _ = autoregressive.generate(*model[0], turns, max_tokens=5, cache=cache)
  whole = [[*prompt, *text, 8, 13] for prompt, text in zip(PROMPTS, first)]
  assert second == generate(*model[0], whole, max_tokens=5)
  with pytest.raises(UserError, match="after .* to come: this model reads 64"):
    autoregressive.generate(*model[0], turns, max_tokens=60, cache=cache)
