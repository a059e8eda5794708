"""Milliseconds of one CLIP training step on this machine's devices.

  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.train_step

64 px, patch 8, width 256, 6+6 layers, batch 128, f32, AdamW: the sizes at which the README compares
with open_clip on the same cores. Prints the first step's seconds (it compiles) and the median of
the `--steps` steps after it.
"""

import statistics
import time

import jax
import numpy as np
from absl import app, flags

from vlx import cli
from vlx.core.config import build
from vlx.models.contrastive.clip import CLIP
from vlx.train import defaults
from vlx.train import step as steps

STEPS = flags.DEFINE_integer("steps", 10, "Steps to time.")
TOWER = dict(
  width=256,
  depth=6,
  num_heads=4,
  mlp_dim=1024,
  activation="gelu",
  layer_norm_epsilon=1e-5,
  initialization="clip",
  unroll=6,
)
MODEL = dict(
  image=dict(image_size=64, patch_size=8, patch_bias=False, pre_norm=True, **TOWER),
  text=dict(vocab_size=49408, context_length=77, **TOWER),
  embed_dim=256,
)


def main(_):
  cli.keep_freed_memory()  # as every vlx command does
  clip = build(CLIP, MODEL, "model")
  rng = np.random.default_rng(0)
  rows = 128
  batch = jax.device_put(
    {
      "image": rng.normal(size=(rows, 64, 64, 3)).astype(np.float32),
      "text": rng.integers(0, 49408, (rows, 77)).astype(np.int32),
      "text_mask": np.ones((rows, 77), bool),
    }
  )
  optim = defaults.get_config().optim
  optim.update(dict(lr=5e-4, weight_decay=0.2, b2=0.98, eps=1e-6, clip_norm=0.0))
  state, frozen, train_step = steps.begin(clip, optim)
  times = []
  for _ in range(STEPS.value + 1):
    start = time.perf_counter()
    state, metrics = train_step(state, frozen, batch)
    jax.block_until_ready((state, metrics))
    times.append(time.perf_counter() - start)
  print(
    f"first {times[0]:.1f} s, then median {1000 * statistics.median(times[1:]):.0f} ms"
    f" ({rows / statistics.median(times[1:]):.0f} examples/s), loss {metrics['loss']:.3f},"
    f" {len(jax.devices())} x {jax.devices()[0].device_kind}"
  )


if __name__ == "__main__":
  app.run(main)
