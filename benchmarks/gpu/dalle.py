"""DALL-E's transformer on a GPU: codes a second of a training step and of sampling, bf16.

  python -m benchmarks.gpu.dalle

12 layers of width 1,024 with the paper's masks (row, column, row, row, ..., conv): 256 text tokens
out of 16,384, then 32 x 32 codes out of 8,192, which are given. A step has AdamW and no
rematerialisation. Sampling draws whole images from the likelier half of the codes, with a cache;
`ms` is a whole batch's.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from benchmarks.dalle import Given, timed
from benchmarks.gpu.measured import TINY, Rows, attempt
from vlx.models.generation.dalle import DALLE
from vlx.train import defaults
from vlx.train import step as steps

REPEATS = 5
FULL = dict(vocab_size=16384, context_length=256, width=1024, depth=12, num_heads=16, mlp_dim=4096)
SMALL = dict(
  vocab_size=100, context_length=16, width=32, depth=3, num_heads=2, mlp_dim=64, conv_size=3
)
# Images at once. 32 in a step do not fit 80 GB without rematerialisation.
TRAIN_ROWS, SAMPLE_ROWS = (16,), (8, 64)


def model() -> DALLE:
  side, codes = (4, 32) if TINY.value else (32, 8192)
  fields = SMALL if TINY.value else FULL
  return DALLE(Given(side, codes, (side, side)), dtype="bfloat16", **fields)


def inputs(system: DALLE, rows: int) -> dict[str, jax.Array]:
  """Images whose first color is the code, and texts without padding."""
  rng, side = np.random.default_rng(0), system.tokenizer.image_size
  codes = rng.integers(0, system.tokenizer.num_codes, (rows, side, side, 1))
  text = rng.integers(2, system.vocab_size, (rows, system.context_length))
  return jax.device_put(
    {
      "image": np.repeat(codes, 3, axis=-1).astype(np.float32),
      "text": text.astype(np.int32),
      "text_mask": np.ones(text.shape, bool),
    }
  )


def train_milliseconds(system: DALLE, rows: int) -> float:
  """Of a step, the median."""
  optim = defaults.get_config().optim
  optim.update(dict(lr=4.5e-4, clip_norm=0.0))
  carried, frozen, train_step = steps.begin(system, optim)
  batch = inputs(system, rows)

  def step():
    nonlocal carried
    carried, metrics = train_step(carried, frozen, batch)
    return metrics

  return 1000 * timed(step, REPEATS)[1]


def sample_milliseconds(system: DALLE, rows: int) -> float:
  """Of a batch of whole images, the median."""
  variables = jax.jit(system.init)(jax.random.key(0))
  variables = {kind: {**tree, "tokenizer": {}} for kind, tree in variables.items()}
  sampler = DALLE.Sampler(top_k=system.tokenizer.num_codes // 2)
  sample = jax.jit(functools.partial(system.sample_tokens, sampler=sampler))
  batch = inputs(system, rows)
  text = {name: batch[name] for name in ("text", "text_mask")}
  return 1000 * timed(lambda: sample(variables, text, jnp.arange(rows)), REPEATS)[1]


def main(_):
  rows, system = Rows("dalle"), model()
  cells = system.tokenizer.image_size**2
  for what, measure, sizes in (
    ("train", train_milliseconds, TRAIN_ROWS),
    ("sample", sample_milliseconds, SAMPLE_ROWS),
  ):
    for size in (2,) if TINY.value else sizes:
      took = attempt(what, functools.partial(measure, system, size))
      rate = 1000 * size * cells / took if isinstance(took, float) else 0.0
      rows.add(what=what, batch_size=size, ms=took, codes_per_second=rate)


if __name__ == "__main__":
  app.run(main)
