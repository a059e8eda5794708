"""Attention on a GPU beside cuDNN, JAX's Pallas kernels and PyTorch: milliseconds and TFLOP/s,
bf16.

  python -m benchmarks.gpu.attention [--masks=causal,window] [--lengths=1024,4096]

FLOPs are those of the pairs that the mask leaves: 4 · head_dim a pair forward, 2.5 times that
backward (five products for two); "both" is a forward with its backward pass. All masks at 4,096;
causal at the other lengths. cuDNN knows causal and window masks of its own ("cudnn"); all others it
is given as an array ("cudnn, explicit"). 16,384 tokens in all, 2,048 channels.
"""

import concurrent.futures
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.gpu.measured import TINY, Rows, attempt, milliseconds
from vlx.ops import masks
from vlx.ops.attention import attention

LENGTHS = flags.DEFINE_list("lengths", ["1024", "4096", "16384"], "Lengths.")
HEAD_DIMS = flags.DEFINE_list("head_dims", ["64", "128"], "Head dims.")
MASKS = flags.DEFINE_list(
  "masks", ["full", "causal", "window", "segments", "row", "column", "conv"], "Masks."
)
TOKENS, CHANNELS, WINDOW = 16384, 2048, 256


def mask_of(name: str, batch: int, length: int) -> masks.Mask:
  """DALL-E's are of a text of a quarter and a grid of the rest, 32 wide."""
  text, width = length // 4, 32
  height = (length - text) // width
  if name == "segments":  # packed: eight texts of random lengths
    cuts = np.sort(np.random.default_rng(0).integers(0, length, (batch, 7)), axis=1)
    return masks.Causal() & masks.Segments.of(
      jnp.asarray((np.arange(length) >= cuts[..., None]).sum(1))
    )
  return {
    "full": masks.Full(),
    "causal": masks.Causal(),
    "window": masks.Causal() & masks.Window(WINDOW, 0),
    "row": masks.Row(text, width),
    "column": masks.Column(text, width, height, True),
    "conv": masks.Conv(text, width, 11),
  }[name]


def visible_pairs(mask: masks.Mask, batch: int, length: int) -> float:
  """By a thousand queries at a time: the whole may be too large to hold."""
  keys, step = jnp.arange(length)[None, None], min(length, 1024)

  @jax.jit
  def of_queries(mask, first):
    queries = (first + jnp.arange(step))[None, :, None]
    some = lambda x: jax.lax.dynamic_slice_in_dim(x, first, step, axis=1)[:, :, None]
    seen = mask.with_arrays(some, lambda x: x[:, None]).visible(queries, keys)
    return jnp.sum(jnp.broadcast_to(seen, (mask.batch_size or 1, step, length)), dtype=jnp.float32)

  return (
    sum(float(of_queries(mask, first)) for first in range(0, length, step))
    * batch
    / (mask.batch_size or 1)
  )


def inputs(batch, length, heads, head_dim):
  rng = np.random.default_rng(0)
  return [
    jnp.asarray(rng.normal(size=(batch, length, heads, head_dim)), jnp.bfloat16) for _ in range(4)
  ]


def torch_sdpa(arrays, causal: bool, backward: bool) -> float:
  import torch

  q, k, v, d_out = (
    torch.tensor(np.asarray(x, np.float32), device="cuda", dtype=torch.bfloat16).transpose(1, 2)
    for x in arrays
  )
  start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

  def once():
    if not backward:
      with torch.no_grad():
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    one, other, third = (x.detach().requires_grad_() for x in (q, k, v))
    torch.nn.functional.scaled_dot_product_attention(one, other, third, is_causal=causal).backward(
      d_out
    )

  for _ in range(3):
    once()
  times = []
  for _ in range(5):
    start.record()
    for _ in range(10):
      once()
    end.record()
    torch.cuda.synchronize()
    times.append(start.elapsed_time(end) / 10)
  return sorted(times)[2]


def programs(name: str, mask: masks.Mask, length: int):
  """Who → (attention of q, k, v and one more array, that array)."""
  known = {
    "full": {},
    "causal": dict(is_causal=True),
    "window": dict(is_causal=True, local_window_size=(WINDOW, 0)),
  }
  cudnn = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
  none = jnp.zeros(())
  found = {
    "vlx": (lambda q, k, v, _: attention(q, k, v, mask=mask, implementation="pallas_gpu"), none)
  }
  if TINY.value:
    return found
  if name in known:
    found["cudnn"] = lambda q, k, v, _: cudnn(q, k, v, **known[name]), none
  if length <= 4096:
    seen = jax.jit(lambda mask: mask.dense(length, length)[:, None])(mask)
    found["cudnn, explicit"] = lambda q, k, v, seen: cudnn(q, k, v, mask=seen), seen
  if name in ("full", "causal"):

    def pallas(q, k, v, _):
      from jax.experimental.pallas.ops.gpu import attention as kernels

      return kernels.mha(q, k, v, None, sm_scale=q.shape[-1] ** -0.5, causal=name == "causal")

    found["jax pallas"] = pallas, none
  return found


def compiled(function, arrays, more, backward: bool):
  """The program, of shapes alone."""

  def gradients(q, k, v, d_out, more):
    return jax.vjp(lambda *x: function(*x, more), q, k, v)[1](d_out)

  forward = lambda q, k, v, d_out, more: function(q, k, v, more)
  return jax.jit(gradients if backward else forward).lower(*arrays, more).compile()


def main(_):
  rows = Rows("attention")
  tokens, channels = (256, 64) if TINY.value else (TOKENS, CHANNELS)
  for length in [128] if TINY.value else map(int, LENGTHS.value):
    for head_dim in [32] if TINY.value else map(int, HEAD_DIMS.value):
      batch, heads = max(1, tokens // length), channels // head_dim
      measure(rows, batch, length, heads, head_dim)


def measure(rows: Rows, batch: int, length: int, heads: int, head_dim: int) -> None:
  """All masks and sides of one size: compiled side by side, run one after another."""
  arrays = inputs(batch, length, heads, head_dim)
  names = MASKS.value if length == 4096 or TINY.value else [m for m in MASKS.value if m == "causal"]
  cases = []
  for name in names:
    mask = mask_of(name, batch, length)
    flops = visible_pairs(mask, batch, length) * heads * head_dim * 4
    for who, (function, more) in programs(name, mask, length).items():
      cases += [(name, who, function, more, backward, flops) for backward in (False, True)]
  with concurrent.futures.ThreadPoolExecutor(12) as pool:
    ready = list(
      pool.map(
        lambda case: attempt(case[1], lambda: compiled(case[2], arrays, case[3], case[4])), cases
      )
    )

  def add(name, who, backward, flops, took):
    rate = flops * (3.5 if backward else 1) / took / 1e9 if isinstance(took, float) else 0.0
    rows.add(
      length=length,
      head_dim=head_dim,
      mask=name,
      who=who,
      way="both" if backward else "forward",
      ms=took,
      tflops=rate,
    )

  for (name, who, _, more, backward, flops), program in zip(cases, ready):
    took = (
      program
      if isinstance(program, str)
      else attempt(
        who, lambda program=program, more=more: milliseconds(lambda: program(*arrays, more))
      )
    )
    add(name, who, backward, flops, took)
    if who == "vlx" and name in ("full", "causal") and not TINY.value:
      took = attempt("torch sdpa", lambda: torch_sdpa(arrays, name == "causal", backward))
      add(name, "torch sdpa", backward, flops, took)


if __name__ == "__main__":
  app.run(main)
