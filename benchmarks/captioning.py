"""Milliseconds of Show, Attend and Tell's decoder on this machine: a training step, and beam search.

  python -m benchmarks.captioning
  python benchmarks/captioning_torch.py

Annotations of 196 x 512 are given; LSTM, words and attention of 512, vocabulary 5,000, 20 words. A step is of
64 captions with dropout and Adam; the search is of 16 pictures with 20 beams. Prints medians.
"""

import functools
import statistics
import time

import flax.linen as nn
import jax
import numpy as np
from absl import app, flags

from vlx import cli
from vlx.models.captioning.show_attend_tell import ShowAttendTell
from vlx.train import defaults, optimizer as optimizers, state as states, step as steps

STEPS = flags.DEFINE_integer("steps", 10, "Runs of each to time.")


class Features(nn.Module):
  """The tower that a picture has already gone through."""

  def __call__(self, image, *, train=False):
    del train
    return image.mean(axis=(1, 2)), image


def timed(function, *args, count):
  """(what the last run gave, median seconds of `count` runs after the first)."""
  times = []
  for _ in range(count + 1):
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    times.append(time.perf_counter() - start)
  return result, statistics.median(times[1:])


def main(_):
  cli.keep_freed_memory()  # as every vlx command does
  system = ShowAttendTell(Features(), vocab_size=5000)
  rng = np.random.default_rng(0)
  rows = 64
  batch = jax.device_put({
      "image": rng.random((rows, 14, 14, 512), np.float32),
      "text": rng.integers(2, 5000, (rows, 21)).astype(np.int32),
      "text_mask": np.ones((rows, 21), bool),
  })
  optim = defaults.get_config().optim
  optim.update(dict(lr=4e-4, clip_norm=0.0))
  params = jax.eval_shape(system.init, jax.random.key(0), batch)["params"]
  optimizer = optimizers.make(optim, 1000, params)
  state = jax.jit(lambda: states.init(system, optimizer, jax.random.key(0), batch, averaged=False))()
  train_step = jax.jit(steps.make(system, optimizer, optim, 1000, seed=0), donate_argnums=0)
  carried = [state]

  def step():
    carried[0], metrics = train_step(carried[0], batch)
    return carried[0], metrics

  (state, metrics), seconds = timed(step, count=STEPS.value)
  print(f"training step {1000 * seconds:.0f} ms, loss {metrics['loss']:.2f}")
  search = jax.jit(functools.partial(system.caption, beam_size=20, max_length=20))
  (ids, _), seconds = timed(search, state.variables, batch["image"][:16], count=max(STEPS.value // 2, 1))
  print(f"beam search {1000 * seconds:.0f} ms, {(np.asarray(ids[:, 0]) > 0).sum(axis=1).mean():.1f} words")


if __name__ == "__main__":
  app.run(main)
