"""Decoding on a GPU: tokens a second of a 7B-shaped and a SmolLM2-shaped LLaMA with random bf16
weights.

  python -m benchmarks.gpu.decode

Prompts of 32 tokens, 64 tokens drawn greedily in one compiled loop. `bandwidth` is the share of the
GPU's memory bandwidth (3.35 TB/s, an H100 SXM's) that reading the weights once a step takes: at
batch 1 nothing else is needed. The other side is transformers' `generate` with its static cache,
where it is installed.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from benchmarks.gpu.measured import TINY, Rows, attempt
from vlx.core.config import build
from vlx.inference import autoregressive
from vlx.inference.sampling import Sampling
from vlx.models.language import llama

BANDWIDTH = 3.35e12
PROMPT, NEW_TOKENS = 32, 64
SIZES = {
  "tiny": dict(
    vocab_size=100,
    width=32,
    depth=2,
    num_heads=4,
    num_groups=2,
    mlp_dim=48,
    context_length=128,
    epsilon=1e-5,
  ),
  "smollm2": dict(
    vocab_size=49152,
    width=576,
    depth=30,
    num_heads=9,
    num_groups=3,
    mlp_dim=1536,
    context_length=2048,
    epsilon=1e-5,
    tie_embeddings=True,
  ),
  "7b": llama.published_size("1-7B"),
}


def model(name: str):
  """(system, variables) in the form for decoding, bf16."""
  system = build(llama.LanguageModel, dict(decoder=SIZES[name] | dict(dtype="bfloat16")), "model")
  shapes = jax.eval_shape(system.init, jax.random.key(0))

  @jax.jit
  def drawn(rng):  # each tensor is made in bf16: 7B in f32 would be 27 GB beside it
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(rng, len(leaves))
    return tree.unflatten(
      [0.02 * jax.random.normal(k, s.shape, jnp.bfloat16) for k, s in zip(keys, leaves)]
    )

  return system.for_decoding(drawn(jax.random.key(0)))


def vlx_milliseconds(system, variables, batch: int) -> float:
  """Of a step: the median of three rounds."""
  text = np.random.default_rng(0).integers(1, 100, (batch, PROMPT), np.int32)
  seeds, stops = np.zeros(batch, np.int32), np.zeros(0, np.int32)
  times = []
  for _ in range(4):
    inputs = {"text": text, "text_mask": np.ones_like(text, bool)}
    cache = system.empty_cache(batch, PROMPT + NEW_TOKENS)
    state = autoregressive._prefill(system, Sampling(), variables, inputs, cache, seeds, stops)
    jax.block_until_ready(state)
    start = time.perf_counter()
    out = autoregressive._decode(
      system, Sampling(), NEW_TOKENS, variables, state, NEW_TOKENS, seeds, stops
    )
    jax.block_until_ready(out)
    times.append(time.perf_counter() - start)
  return 1000 * statistics.median(times[1:]) / NEW_TOKENS


def transformers_milliseconds(name: str, batch: int) -> float:
  import torch
  import transformers

  size = SIZES[name]
  config = transformers.LlamaConfig(
    vocab_size=size["vocab_size"],
    hidden_size=size["width"],
    intermediate_size=size["mlp_dim"],
    num_hidden_layers=size["depth"],
    num_attention_heads=size["num_heads"],
    num_key_value_heads=size["num_groups"],
    max_position_embeddings=size["context_length"],
    tie_word_embeddings=size.get("tie_embeddings", False),
  )
  with torch.device("cuda"):
    torch.set_default_dtype(torch.bfloat16)
    theirs = transformers.LlamaForCausalLM(config).eval()
  text = torch.randint(1, 100, (batch, PROMPT), device="cuda")
  options = dict(
    attention_mask=torch.ones_like(text), do_sample=False, pad_token_id=0, eos_token_id=None
  )
  times = {}
  for tokens in (1, 1 + NEW_TOKENS, 1, 1 + NEW_TOKENS):
    torch.cuda.synchronize()
    start = time.perf_counter()
    theirs.generate(text, max_new_tokens=tokens, min_new_tokens=tokens, **options)
    torch.cuda.synchronize()
    times[tokens] = time.perf_counter() - start
  del theirs
  torch.cuda.empty_cache()
  return 1000 * (times[1 + NEW_TOKENS] - times[1]) / NEW_TOKENS


def main(_):
  rows = Rows("decode")
  for name in ("tiny",) if TINY.value else ("smollm2", "7b"):
    system, variables = model(name)
    size = sum(x.nbytes for x in jax.tree.leaves(variables))
    for batch in (1, 16):
      took = attempt("vlx", lambda: vlx_milliseconds(system, variables, batch))
      told = isinstance(took, float)
      rows.add(
        model=name,
        who="vlx",
        batch=batch,
        ms=took,
        tokens_per_second=1000 * batch / took if told else 0.0,
        bandwidth=size / (took / 1000) / BANDWIDTH if told else 0.0,
        bytes=size,
      )
  for name in () if TINY.value else ("smollm2", "7b"):
    for batch in (1, 16):
      took = attempt("transformers", lambda: transformers_milliseconds(name, batch))
      rows.add(
        model=name,
        who="transformers",
        batch=batch,
        ms=took,
        tokens_per_second=1000 * batch / took if isinstance(took, float) else 0.0,
      )


if __name__ == "__main__":
  app.run(main)
