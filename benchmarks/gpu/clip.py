"""CLIP's training step on a GPU: images a second, bf16, published sizes, rematerialised.

python -m benchmarks.gpu.clip
"""

import jax
import numpy as np
from absl import app

from benchmarks.dalle import timed
from benchmarks.gpu.measured import TINY, Rows, attempt
from vlx.core import config as configs
from vlx.train import step as steps

RUNS = (("b32", 256), ("b32", 1024), ("b16", 256), ("b16", 1024))


def milliseconds(variant: str, batch_size: int) -> float:
  """Of a step, the median of 8 after the first."""
  config = configs.load_config(f"configs/clip.py:{variant}")
  system = configs.build_system(config)
  rng = np.random.default_rng(0)
  shape = system.inputs()["image"].shape
  # Words drawn evenly: where all were the same, their gradients would wait for each other at one
  # row.
  batch = jax.device_put(
    {
      "image": rng.normal(size=(batch_size, *shape)).astype(np.float32),
      "text": rng.integers(1, system.vocab_size, (batch_size, system.text_length), np.int32),
      "text_mask": np.ones((batch_size, system.text_length), bool),
    }
  )
  state, frozen, train_step = steps.begin(system, config.optim)

  def step():
    nonlocal state
    state, metrics = train_step(state, frozen, batch)
    return metrics

  return 1000 * timed(step, 8)[1]


def main(_):
  rows = Rows("clip")
  for variant, batch_size in (("smoke", 8),) if TINY.value else RUNS:
    took = attempt(variant, lambda: milliseconds(variant, batch_size))
    rate = 1000 * batch_size / took if isinstance(took, float) else 0.0
    rows.add(model=variant, batch_size=batch_size, ms=took, images_per_second=rate)


if __name__ == "__main__":
  app.run(main)
