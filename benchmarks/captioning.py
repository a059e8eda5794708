"""Milliseconds of Show, Attend and Tell's decoder on this machine: a training step, and beam
search.

  python -m benchmarks.captioning
  python benchmarks/captioning_torch.py

Annotations of 196 x 512 are given; LSTM, words and attention of 512, vocabulary 5,000, 20 words. A
step is of 64 captions with dropout and Adam; the search is of 16 images with 20 beams. Prints
medians.
"""

import dataclasses
import functools
import statistics
import time

import flax.linen as nn
import jax
import numpy as np
from absl import app, flags

from vlx import cli
from vlx.core.system import text_inputs
from vlx.inference.decoding import Search
from vlx.models.captioning.show_attend_tell import ShowAttendTell
from vlx.train import defaults
from vlx.train import step as steps

STEPS = flags.DEFINE_integer("steps", 10, "Runs of each to time.")


class Features(nn.Module):
  """The tower that an image has already gone through."""

  has_batch_statistics = False

  def __call__(self, image, *, train=False):
    del train
    return image.mean(axis=(1, 2)), image


@dataclasses.dataclass(frozen=True)
class OfFeatures(ShowAttendTell):
  """The system on annotations."""

  def inputs(self):
    return {"image": jax.ShapeDtypeStruct((14, 14, 512), np.float32), **text_inputs(21)}


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
  system = OfFeatures(Features(), vocab_size=5000)
  rng = np.random.default_rng(0)
  rows = 64
  batch = jax.device_put(
    {
      "image": rng.random((rows, 14, 14, 512), np.float32),
      "text": rng.integers(2, 5000, (rows, 21)).astype(np.int32),
      "text_mask": np.ones((rows, 21), bool),
    }
  )
  optim = defaults.get_config().optim
  optim.update(dict(lr=4e-4, clip_norm=0.0))
  state, frozen, train_step = steps.begin(system, optim)
  carried = [state]

  def step():
    carried[0], metrics = train_step(carried[0], frozen, batch)
    return carried[0], metrics

  (state, metrics), seconds = timed(step, count=STEPS.value)
  print(f"training step {1000 * seconds:.0f} ms, loss {metrics['loss']:.2f}")
  search = jax.jit(functools.partial(system.caption, search=Search(20, 20)))
  (ids, _), seconds = timed(
    search, state.variables, {"image": batch["image"][:16]}, count=max(STEPS.value // 2, 1)
  )
  print(
    f"beam search {1000 * seconds:.0f} ms, {(np.asarray(ids[:, 0]) > 0).sum(axis=1).mean():.1f} words"
  )


if __name__ == "__main__":
  app.run(main)
