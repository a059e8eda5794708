"""The GPU's kernels against their definitions in float64, on the device: values and gradients.

  python -m benchmarks.gpu.correct

200 random cases of attention: masks of every kind and their pairs, groups, head dims, lengths of no
power of two, f32 and bf16. 40 of nearest codes: what makes the choice hard, both distances. Each
failure is told with its case.
"""

import concurrent.futures

import jax.numpy as jnp
import numpy as np
from absl import app

from benchmarks.gpu.measured import TINY, Rows
from tests.ops import test_attention, test_nearest_code
from vlx.ops import masks
from vlx.ops.nearest_code import nearest_code

KINDS = ("near the codes", "near-duplicates", "far from the origin", "duplicates", "plain")


def random_mask(rng: np.random.Generator, batch: int, length: int, keys: int) -> masks.Mask:
  """Of any kind, or a pair of them."""
  side = int(np.sqrt(max(length - 3, 1)))
  ids = lambda size, high=4: jnp.asarray(rng.integers(0, high, (batch, size)))
  runs = lambda size: jnp.sort(ids(size), axis=1)
  simple = (
    masks.Full,
    lambda: masks.Causal(int(rng.integers(-5, 6))),
    lambda: masks.PrefixCausal(int(rng.integers(length))),
    lambda: masks.Window(int(rng.integers(50)), int(rng.integers(9))),
    lambda: masks.Keys(int(rng.integers(1, keys + 1))),
    lambda: masks.Row(3, side),
    lambda: masks.Conv(3, side, 3),
    lambda: masks.Column(3, side, side, bool(rng.integers(2))),
    lambda: masks.Segments(ids(length), ids(keys)),
    lambda: masks.Segments(runs(length), runs(keys)),
    lambda: masks.KeyPadding(ids(keys, 2)),
  )
  one, other = (simple[rng.integers(len(simple))]() for _ in range(2))
  return (one, one & other, one | other)[rng.integers(3)]


def attention_case(seed: int, longest: int):
  """(sizes, mask, scale, type), as `test_attention.check` takes it."""
  rng = np.random.default_rng(seed)
  batch, groups, share = (int(n) for n in rng.integers(1, (3, 3, 4)))
  length, keys = (int(n) for n in rng.integers(1, longest, 2))
  sizes = (batch, length, keys, groups, share, int(rng.choice((16, 32, 40, 64, 80, 128))))
  dtype = ("float32", "bfloat16")[seed % 2]
  return sizes, random_mask(rng, batch, length, keys), (None, 0.3)[rng.integers(2)], dtype


def check_attention(seed: int, longest: int) -> str:
  """The fault that was found, or ""."""
  case = attention_case(seed, longest)
  try:
    test_attention.check(case, "pallas_gpu")
  except Exception as e:
    sizes, mask, scale, dtype = case
    return f"seed {seed} {sizes} {type(mask).__name__} scale {scale} {dtype}: {type(e).__name__} {str(e).strip()[:300]}"
  return ""


def check_nearest(seed: int, most: int) -> str:
  rng = np.random.default_rng(seed)
  rows, codes, dim = (int(n) for n in rng.integers(1, (most, most, 300)))
  kind, distance = KINDS[seed % len(KINDS)], ("l2", "cosine")[seed // len(KINDS) % 2]
  x, codebook = test_nearest_code.vectors(rows, codes, dim, kind, seed)
  try:
    ids = nearest_code(
      jnp.asarray(x), jnp.asarray(codebook), distance=distance, implementation="pallas_gpu"
    )
    test_nearest_code.assert_nearest(ids, x, codebook, distance)
  except Exception as e:
    return f"seed {seed} {rows} rows, {codes} codes of {dim}, {kind}, {distance}: {type(e).__name__} {str(e).strip()[:300]}"
  return ""


def main(_):
  rows = Rows("correct")
  parts = (
    ("attention", check_attention, 4 if TINY.value else 200, 40 if TINY.value else 400),
    ("nearest_code", check_nearest, 5 if TINY.value else 40, 30 if TINY.value else 1500),
  )
  # Most of the time is compilation, which leaves the interpreter to others.
  with concurrent.futures.ThreadPoolExecutor(2 if TINY.value else 14) as pool:
    for name, check, count, size in parts:
      wrong = [
        w
        for w in pool.map(lambda seed, check=check, size=size: check(seed, size), range(count))
        if w
      ]
      print(*wrong, sep="\n")
      rows.add(kernel=name, cases=count, wrong=len(wrong), failures=wrong)


if __name__ == "__main__":
  app.run(main)
