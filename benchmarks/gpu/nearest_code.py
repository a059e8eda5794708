"""Nearest codes on a GPU beside XLA's argmin of distances at its highest precision: milliseconds,
f32.

  python -m benchmarks.gpu.nearest_code

`wrong` are the rows of which XLA's code is farther than ours, in float64 (of the first 1,000).
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from benchmarks.gpu.measured import TINY, Rows, attempt, milliseconds
from vlx.ops.nearest_code import nearest_code

SIZES = ((4096, 512, 64), (32768, 8192, 256), (65536, 16384, 32))


def plain(x, codebook):
  products = jnp.matmul(x, codebook.T, precision="highest")
  return jnp.argmin(jnp.sum(codebook**2, axis=1) - 2 * products, axis=1)


def farther(ids, others, x, codebook) -> int:
  """Rows of which `others` is farther than `ids`."""
  distance = lambda ids: ((x - codebook[np.asarray(ids)[: len(x)]]) ** 2).sum(1)
  return int((distance(others) > distance(ids)).sum())


def main(_):
  rows = Rows("nearest_code")
  for sizes in ((64, 40, 16),) if TINY.value else SIZES:
    rng = np.random.default_rng(0)
    x, codebook = rng.normal(size=(sizes[0], sizes[2])), rng.normal(size=(sizes[1], sizes[2]))
    arrays = jnp.asarray(x, jnp.float32), jnp.asarray(codebook, jnp.float32)
    exact = [np.asarray(a[:1000] if i == 0 else a, np.float64) for i, a in enumerate(arrays)]
    ours = jax.jit(lambda x, codebook: nearest_code(x, codebook, implementation="pallas_gpu"))
    reference = jax.jit(plain)
    ways = {
      "vlx": ours,
      "vlx, XLA": jax.jit(lambda x, codebook: nearest_code(x, codebook, implementation="xla")),
      "argmin, highest": reference,
    }
    for who, run in ways.items():
      took = attempt(who, lambda run=run: milliseconds(lambda: run(*arrays)))
      wrong = attempt(who, lambda run=run: farther(ours(*arrays), run(*arrays), *exact))
      memory = attempt(
        who, lambda run=run: run.lower(*arrays).compile().memory_analysis().temp_size_in_bytes
      )
      rate = 2 * np.prod(sizes, dtype=float) / took / 1e9 if isinstance(took, float) else 0.0
      rows.add(
        rows=sizes[0],
        codes=sizes[1],
        dim=sizes[2],
        who=who,
        ms=took,
        tflops=float(rate),
        wrong=wrong,
        temporaries=memory,
      )


if __name__ == "__main__":
  app.run(main)
