"""python benchmarks/convolution.py

3x3 convolutions, forward and both gradients, as XLA compiles them for a CPU by itself and by `vlx.core.xla`'s options:
milliseconds, medians of interleaved runs, and how many times as fast.
"""

import statistics
import time

import jax
import jax.numpy as jnp

from vlx.core import xla

SIZES = ((64, 32), (32, 64), (16, 96), (16, 128), (8, 192))  # side, channels
BATCH, ROUNDS = 16, 9


def convolve(x, kernel):
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


FUNCTIONS = {
  "forward": lambda x, kernel, g: convolve(x, kernel),
  "to the image": lambda x, kernel, g: jax.vjp(lambda x: convolve(x, kernel), x)[1](g),
  "to the kernel": lambda x, kernel, g: jax.vjp(lambda k: convolve(x, k), kernel)[1](g),
}


def seconds(function, inputs) -> float:
  start = time.perf_counter()
  jax.block_until_ready(function(*inputs))
  return time.perf_counter() - start


def main():
  print(f"{'size':>10} {'':>14} {'XLA':>8} {'training':>9} {'inference':>10}   times as fast")
  for side, channels in SIZES:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (
      (BATCH, side, side, channels),
      (3, 3, channels, channels),
      (BATCH, side, side, channels),
    )
    inputs = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes)]
    for name, function in FUNCTIONS.items():
      options = (None, *(xla.compiler_options("cpu", f) for f in (xla.TRAINING, xla.INFERENCE)))
      compiled = [jax.jit(function).lower(*inputs).compile(compiler_options=o) for o in options]
      jnp.zeros(()).block_until_ready()
      times = [[seconds(f, inputs) for f in compiled] for _ in range(ROUNDS)]
      plain, training, inference = (1e3 * statistics.median(t) for t in zip(*times[2:]))
      ratios = f"{plain / training:.1f} {plain / inference:.1f}"
      print(
        f"{f'{side}x{side}x{channels}':>10} {name:>14} {plain:8.1f} {training:9.1f} {inference:10.1f}   {ratios}"
      )


if __name__ == "__main__":
  main()
