"""DALL-E's transformer on this machine: milliseconds of a training step, codes a second of
sampling.

  python -m benchmarks.dalle
  python benchmarks/dalle_torch.py

8 layers of width 256 and 4 heads, full masks, MLPs of 1,536; 64 text tokens out of 4,000, 16 x 16
codes out of 1,024, f32. Codes are given; a step is of 8 pairs with AdamW; 8 images are sampled at
once, of the likelier half of the codes. Prints medians.
"""

import dataclasses
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from vlx import cli
from vlx.models.generation.dalle import DALLE
from vlx.train import defaults
from vlx.train import step as steps

STEPS = flags.DEFINE_integer("steps", 5, "Runs of each to time.")
TEXT, SIDE, ROWS, CODES, WORDS = 64, 16, 8, 1024, 4000


@dataclasses.dataclass(frozen=True)
class Given:
  """The tokenizer that images have already gone through: their first color is the code."""

  image_size: int = SIDE
  num_codes: int = CODES
  grid: tuple[int, int] = (SIDE, SIDE)

  def init(self, rng):
    del rng
    return {"params": {}, "state": {}}

  def image_to_tokens(self, v, image):
    del v
    return image[..., 0].astype(jnp.int32)

  def tokens_to_image(self, v, tokens):
    del v
    return jnp.repeat(tokens[..., None], 3, axis=-1).astype(jnp.float32)


def timed(function, count):
  """(what the last run gave, median seconds of `count` runs after the first)."""
  times = []
  for _ in range(count + 1):
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    times.append(time.perf_counter() - start)
  return result, statistics.median(times[1:])


def main(_):
  cli.keep_freed_memory()  # as every vlx command does
  system = DALLE(
    Given(),
    vocab_size=WORDS,
    context_length=TEXT,
    width=256,
    depth=8,
    num_heads=4,
    mlp_dim=1536,
    pattern=("full",),
    last_mask="full",
    unroll=8,
  )
  rng = np.random.default_rng(0)
  codes = rng.integers(0, CODES, (ROWS, SIDE, SIDE, 1))
  batch = jax.device_put(
    {
      "image": np.repeat(codes, 3, axis=-1).astype(np.float32),
      "text": rng.integers(2, WORDS, (ROWS, TEXT)).astype(np.int32),
      "text_mask": np.ones((ROWS, TEXT), bool),
    }
  )
  optim = defaults.get_config().optim
  optim.update(dict(lr=4.5e-4, clip_norm=0.0))
  state, frozen, train_step = steps.begin(system, optim)
  carried = [state]

  def step():
    carried[0], metrics = train_step(carried[0], frozen, batch)
    return carried[0], metrics

  (state, metrics), seconds = timed(step, STEPS.value)
  print(f"training step {1000 * seconds:.0f} ms, loss {metrics['loss']:.2f}", flush=True)
  generate = jax.jit(
    functools.partial(system.sample_tokens, sampler=DALLE.Sampler(top_k=CODES // 2))
  )
  variables = {kind: {**tree, "tokenizer": {}} for kind, tree in state.variables.items()}
  inputs = variables, {n: batch[n] for n in ("text", "text_mask")}, jnp.arange(ROWS)
  ids, seconds = timed(lambda: generate(*inputs), STEPS.value)
  print(f"sampling {ids.size / seconds:.0f} codes/s", flush=True)


if __name__ == "__main__":
  app.run(main)
