"""Milliseconds of attention on this CPU: `vlx.ops.attention` beside `jax.nn.dot_product_attention`.

  python -m benchmarks.attention_cpu

Forward, and with the gradients of queries, keys and values. The two take turns; medians of
`--repeats` calls.
"""

import statistics
import time

import jax
from absl import app, flags

from vlx.ops.attention import attention
from vlx.ops.masks import Causal, Full

REPEATS = flags.DEFINE_integer("repeats", 15, "Calls of each to time.")
# (batch, length, heads, head_dim), causal: CLIP's demo, ViT-B/16's 197 tokens, a decoder.
SIZES = [
  ((128, 65, 4, 64), False),
  ((16, 197, 8, 64), False),
  ((16, 197, 8, 64), True),
  ((2, 1024, 8, 64), False),
  ((2, 1024, 8, 64), True),
]


def ours(queries, keys, values, causal):
  return attention(queries, keys, values, mask=Causal() if causal else Full())


def jaxs(queries, keys, values, causal):
  return jax.nn.dot_product_attention(queries, keys, values, is_causal=causal)


def medians(functions, arguments) -> list[float]:
  """Milliseconds per call of each function, their calls taking turns."""
  for function in functions:
    jax.block_until_ready(function(*arguments))
  times = [[] for _ in functions]
  for _ in range(REPEATS.value):
    for function, own in zip(functions, times):
      start = time.perf_counter()
      jax.block_until_ready(function(*arguments))
      own.append(time.perf_counter() - start)
  return [1e3 * statistics.median(own) for own in times]


def main(_):
  print(f"{'batch x length x heads x head_dim':34}{'':10}{'vlx':>8}{'jax.nn':>8}  ratio")
  for dtype in ("float32", "bfloat16"):
    for shape, causal in SIZES:
      arrays = jax.random.normal(jax.random.key(0), (4, *shape), dtype)

      def forward(attend):
        return jax.jit(lambda q, k, v, _: attend(q, k, v, causal))

      def gradients(attend):
        return jax.jit(lambda q, k, v, d: jax.vjp(lambda *x: attend(*x, causal), q, k, v)[1](d))

      for what, of in (("forward", forward), ("+ backward", gradients)):
        own, other = medians([of(ours), of(jaxs)], arrays)
        name = f"{'x'.join(map(str, shape))} {dtype}{' causal' if causal else ''}"
        print(f"{name:34}{what:10}{own:8.1f}{other:8.1f}  {own / other:.2f}", flush=True)


if __name__ == "__main__":
  app.run(main)
