"""Attention as TPU kernels: forward, the gradient of queries, and those of keys and values.

The online softmax of *FlashAttention* (Dao et al., 2022): a tile of scores lives in VMEM for one
step of the grid and is computed anew for the gradients, so nothing of size `[length, keys]` is ever
stored.

Operands are read as `[batch, heads, head_dim, length]`. Where head_dim does not fill 128 lanes,
that is how XLA lays out `[batch, length, heads, head_dim]`, so the kernels take arguments and give
results without a copy, and nothing is padded to 128. What a tile of scores meets over and over is
turned once per row of tiles: every product then has a form that the matrix unit takes as it stands.

Scores are in units of log2(e), for the vector unit's own exponential is 2^x.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from vlx.ops import attention_schedule as schedules
from vlx.ops.attention_schedule import BUSY, FIRST, LANES, LAST, WHOLE
from vlx.ops.masks import Mask

LOG2_E = math.log2(math.e)

# Finite, so that a row that has seen nothing yet has differences, not NaN.
_HIDDEN = -1e30
# Of a row that sees nothing, in place of -inf: 2^(score - _NOTHING) is 0.
_NOTHING = 1e30

_ROWS_BY_KEYS = ((1,), (0,))  # [m, d] x [d, n]
_ROWS_BY_ROWS = ((1,), (1,))  # [m, d] x [n, d]


def forward(
  queries: Float[Array, "batch length heads head_dim"],
  keys: Float[Array, "batch keys kv_heads head_dim"],
  values: Float[Array, "batch keys kv_heads head_dim"],
  mask: Mask,
  scale: float,
  *,
  interpret: Any = False,
  blocks: tuple[int, int] | None = None,
) -> tuple[Float[Array, "batch length heads head_dim"], Float[Array, "batch heads length"]]:
  """Softmax(scale queries keys') values, and the log of the sum of exponentials, -inf where nothing
  is seen.

  `blocks` are positions of queries and of keys per tile, multiples of 128; by length where not
  given.
  """
  plan, data = schedules.plan(queries, keys, mask, blocks, interpret, by_keys=False)
  q, k, v = (_lengthwise(x) for x in (queries, keys, values))
  heads, head_dim = q.shape[1:3]
  f32 = functools.partial(pltpu.VMEM, dtype=jnp.float32)
  out, lse = schedules.call(
    _kernel(_forward_kernel, scale),
    "attention_forward",
    plan,
    data,
    inputs=[(q, "query"), (k, "key"), (v, "key")],
    outputs=[(q.shape, q.dtype, "query"), ((*q.shape[:2], 1, q.shape[3]), jnp.float32, "query")],
    scratch=[
      pltpu.VMEM((plan.block_q, head_dim), q.dtype),
      f32((plan.block_q, LANES)),
      f32((plan.block_q, LANES)),
      f32((plan.block_q, head_dim)),
    ],
    heads=heads,
    kv_heads=k.shape[1],
    interpret=interpret,
  )
  return _headwise(out, queries), rearrange(lse, "b h 1 t -> b h t")


def backward(
  queries: Float[Array, "batch length heads head_dim"],
  keys: Float[Array, "batch keys kv_heads head_dim"],
  values: Float[Array, "batch keys kv_heads head_dim"],
  d_out: Float[Array, "batch length heads head_dim"],
  lse: Float[Array, "batch heads length"],
  delta: Float[Array, "batch heads length"],
  mask: Mask,
  scale: float,
  *,
  interpret: Any = False,
  blocks: tuple[int, int] | None = None,
) -> tuple[
  Float[Array, "batch length heads head_dim"],
  Float[Array, "batch keys kv_heads head_dim"],
  Float[Array, "batch keys kv_heads head_dim"],
]:
  """Gradients of queries, keys and values from that of the output.

  `delta` is the sum of d_out · out over head_dim, less the gradient of `lse` where that has one.
  """
  q, k, v, do = (_lengthwise(x) for x in (queries, keys, values, d_out.astype(queries.dtype)))
  heads, kv_heads, head_dim = q.shape[1], k.shape[1], q.shape[2]
  rows = [(rearrange(x, "b h t -> b h 1 t"), "query") for x in (lse, delta)]
  inputs = [(q, "query"), (k, "key"), (v, "key"), (do, "query"), *rows]
  f32 = functools.partial(pltpu.VMEM, dtype=jnp.float32)

  plan, data = schedules.plan(queries, keys, mask, blocks, interpret, by_keys=False)
  turned = pltpu.VMEM((plan.block_q, head_dim), q.dtype)
  (dq,) = schedules.call(
    _kernel(_dq_kernel, scale),
    "attention_dq",
    plan,
    data,
    inputs,
    outputs=[(q.shape, q.dtype, "query")],
    scratch=[
      turned,
      turned,
      f32((plan.block_q, LANES)),
      f32((plan.block_q, LANES)),
      f32(_gradient_shape(plan.block_q, head_dim)),
    ],
    heads=heads,
    kv_heads=kv_heads,
    interpret=interpret,
  )
  plan, data = schedules.plan(queries, keys, mask, blocks, interpret, by_keys=True)
  turned = pltpu.VMEM((plan.block_k, head_dim), k.dtype)
  dk, dv = schedules.call(
    _kernel(_dkv_kernel, scale),
    "attention_dkv",
    plan,
    data,
    inputs,
    outputs=[(k.shape, k.dtype, "key"), (v.shape, v.dtype, "key")],
    scratch=[turned, turned, *[f32(_gradient_shape(plan.block_k, head_dim))] * 2],
    heads=heads,
    kv_heads=kv_heads,
    interpret=interpret,
  )
  return _headwise(dq, queries), _headwise(dk, keys), _headwise(dv, values)


def _gradient_shape(block, head_dim):
  """The shape of the sum of a gradient over tiles. Heads that leave lanes of the matrix unit idle lie
  across them.
  """
  return (head_dim, block) if head_dim < LANES else (block, head_dim)


def _lengthwise(x):
  x = rearrange(x, "b t h d -> b h d t")
  return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % 16), (0, 0)))  # 16 sublanes of bf16


def _headwise(x, like):
  return rearrange(x[:, :, : like.shape[-1]], "b h d t -> b t h d")


@dataclasses.dataclass(frozen=True)
class _Step:
  """Where a kernel stands: position of the tile, and what to do. Scalars."""

  plan: schedules.Plan
  q_tile: Any
  k_tile: Any
  first: Any
  last: Any
  busy: Any
  whole: Any
  arrays: list  # of the mask, as tiles to be read


def _kernel(body, scale):
  """`body(step, inputs, outputs, scratch, scale=)` as what `schedules.call` calls."""

  def kernel(plan, prefetched, counts, *refs):
    tables, refs = refs[:prefetched], list(refs[prefetched:])
    inputs, arrays, outputs, scratch = ([refs.pop(0) for _ in range(n)] for n in counts)
    body(_step(plan, tables, arrays, refs), inputs, outputs, scratch, scale=scale)

  return kernel


def _step(plan, tables, arrays, columns):
  """Where the grid stands; the mask's arrays that a whole row of tiles shares are turned into
  `columns`.
  """
  at = pl.program_id(2)
  flags = tables[2][at]
  busy = flags & BUSY != 0 if len(tables) == 3 else tables[3][pl.program_id(0), at] == at
  first, last = flags & FIRST != 0, flags & LAST != 0
  if plan.by_keys:
    first &= pl.program_id(3) == 0
    last &= pl.program_id(3) == pl.num_programs(3) - 1
  tiles, columns = [], iter(columns)
  for ref, over in zip(arrays, plan.arrays_over):
    if (over == "keys") == plan.by_keys:
      column = next(columns)
      pl.when(first)(functools.partial(_turn, ref, column))
      ref = column
    tiles.append(ref)
  return _Step(plan, tables[0][at], tables[1][at], first, last, busy, flags & WHOLE != 0, tiles)


def _turn(row_ref, column_ref):
  column_ref[...] = _column(row_ref[...])


def _column(row):
  """`[1, n]` as `[n, 128]`, the same in all lanes."""
  return jnp.broadcast_to(row, (LANES, row.shape[1])).T


def _lanes(column, n: int):
  """`[m, 128]`, the same in all lanes, as `[m, n]`."""
  return column[:, :n] if n <= LANES else jnp.tile(column, (1, -(-n // LANES)))[:, :n]


def _when_busy(step, body):
  """Runs `body(masked)` where the step has anything to compute."""
  if step.plan.whole_apart:
    pl.when(step.busy & step.whole)(lambda: body(False))
    pl.when(step.busy & ~step.whole)(lambda: body(True))
  else:
    pl.when(step.busy)(lambda: body(step.plan.steps.some_partial))


def _hide(step, scores):
  """The scores `[block_q, block_k]`, or `[block_k, block_q]` by keys, `_HIDDEN` where the mask
  hides them.
  """
  plan = step.plan
  q_axis, k_axis = (1, 0) if plan.by_keys else (0, 1)

  def positions(tile, block, axis):
    shape = tuple(block if a == axis else 1 for a in (0, 1))
    return tile * block + lax.broadcasted_iota(jnp.int32, shape, axis)

  arrays = [
    ref[...] if ref.shape[0] == 1 else _lanes(ref[...], scores.shape[1]) for ref in step.arrays
  ]
  seen = jax.tree.unflatten(plan.mask, arrays).visible(
    positions(step.q_tile, plan.block_q, q_axis), positions(step.k_tile, plan.block_k, k_axis)
  )
  return jnp.where(seen, scores, _HIDDEN)


def _clear_tail(step, over, refs_and_values):
  """Overwrites what lies beyond the last position: it is not zeros but anything, NaN too."""
  plan = step.plan
  length, block, tile = {
    "query": (plan.q_length, plan.block_q, step.q_tile),
    "key": (plan.k_length, plan.block_k, step.k_tile),
  }[over]
  if length % block:

    @pl.when(step.busy & (tile == length // block))
    def _():
      for ref, value in refs_and_values:
        inside = lax.broadcasted_iota(jnp.int32, ref.shape, 1) < length % block
        ref[...] = jnp.where(inside, ref[...], jnp.asarray(value, ref.dtype))


def _dot(step, a, b, contracted):
  """Accumulates in f32; the products of f32 operands are exact to f32, not bf16."""
  if step.plan.interpreted:
    # the same products; a CPU makes none of bf16
    a, b = (a.astype(jnp.float32), b.astype(jnp.float32))
  precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
  return lax.dot_general(
    a, b, (contracted, ((), ())), precision=precision, preferred_element_type=jnp.float32
  )


def _turned(ref, factor=1.0):
  """Tile `[head_dim, block]` as `[block, head_dim]`, times `factor`."""
  return (ref[...].astype(jnp.float32) * factor).T.astype(ref.dtype)


def _forward_kernel(step, inputs, outputs, scratch, *, scale):
  q_ref, k_ref, v_ref = inputs
  out_ref, lse_ref = outputs
  q_turned, maximum, total, acc = scratch

  @pl.when(step.first)
  def _():
    q_turned[...] = _turned(q_ref, scale * LOG2_E)
    maximum[...] = jnp.full_like(maximum, _HIDDEN)
    total[...] = jnp.zeros_like(total)
    acc[...] = jnp.zeros_like(acc)

  _clear_tail(step, "key", [(v_ref, 0)])

  def body(masked):
    scores = _dot(step, q_turned[...], k_ref[...], _ROWS_BY_KEYS)
    if masked:
      scores = _hide(step, scores)
    before = maximum[...]
    now = jnp.maximum(before, scores.max(axis=1, keepdims=True))
    p = jnp.exp2(scores - _lanes(now, scores.shape[1]))
    kept = jnp.exp2(before - now)
    maximum[...] = now
    total[...] = kept * total[...] + sum(p[:, i : i + LANES] for i in range(0, p.shape[1], LANES))
    more = _dot(step, p.astype(v_ref.dtype), v_ref[...], _ROWS_BY_ROWS)
    acc[...] = _lanes(kept, acc.shape[1]) * acc[...] + more

  _when_busy(step, body)

  @pl.when(step.last)
  def _():
    # A row that has seen nothing has a maximum of _HIDDEN, and in `total` whatever its tiles held.
    some = maximum[...] > _HIDDEN / 2
    sums = jnp.broadcast_to(total[...].sum(axis=1, keepdims=True), total.shape)
    weight = jnp.where(some, 1 / sums, 0.0)
    out_ref[...] = (acc[...] * _lanes(weight, acc.shape[1])).T.astype(out_ref.dtype)
    lse = jnp.where(some, maximum[...] / LOG2_E + jnp.log(sums), -jnp.inf)
    lse_ref[...] = lse.T[:1]


def _dq_kernel(step, inputs, outputs, scratch, *, scale):
  q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref = inputs
  (dq_ref,) = outputs
  q_turned, do_turned, lse, delta, acc = scratch

  @pl.when(step.first)
  def _():
    q_turned[...] = _turned(q_ref, scale * LOG2_E)
    do_turned[...] = _turned(do_ref)
    lse[...] = _column(_in_log2(lse_ref[...]))
    delta[...] = _column(delta_ref[...])
    acc[...] = jnp.zeros_like(acc)

  _clear_tail(step, "key", [(k_ref, 0), (v_ref, 0)])

  def body(masked):
    scores = _dot(step, q_turned[...], k_ref[...], _ROWS_BY_KEYS)
    if masked:
      scores = _hide(step, scores)
    p = jnp.exp2(scores - _lanes(lse[...], scores.shape[1]))
    dp = _dot(step, do_turned[...], v_ref[...], _ROWS_BY_KEYS)
    ds = p * (dp - _lanes(delta[...], scores.shape[1]))
    _accumulate(step, acc, ds, k_ref)

  _when_busy(step, body)

  @pl.when(step.last)
  def _():
    _write(dq_ref, acc[...] * scale)


def _dkv_kernel(step, inputs, outputs, scratch, *, scale):
  q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref = inputs
  dk_ref, dv_ref = outputs
  k_turned, v_turned, dk, dv = scratch

  @pl.when(step.first)
  def _():
    k_turned[...] = _turned(k_ref, scale * LOG2_E)
    v_turned[...] = _turned(v_ref)
    dk[...] = jnp.zeros_like(dk)
    dv[...] = jnp.zeros_like(dv)

  _clear_tail(step, "query", [(q_ref, 0), (do_ref, 0), (lse_ref, -jnp.inf), (delta_ref, 0)])

  def body(masked):
    scores = _dot(step, k_turned[...], q_ref[...], _ROWS_BY_KEYS)
    if masked:
      scores = _hide(step, scores)
    dp = _dot(step, v_turned[...], do_ref[...], _ROWS_BY_KEYS)
    p = jnp.exp2(scores - _in_log2(lse_ref[...]))
    _accumulate(step, dv, p, do_ref)
    _accumulate(step, dk, p * (dp - delta_ref[...]), q_ref)

  _when_busy(step, body)

  @pl.when(step.last)
  def _():
    _write(dk_ref, dk[...] * scale)
    _write(dv_ref, dv[...])


def _accumulate(step, acc, weights, ref):
  """Adds weights `[m, n]` times what `ref` holds, `[head_dim, n]` turned; `acc` is of
  `_gradient_shape`.
  """
  weights = weights.astype(ref.dtype)
  pair = (ref[...], weights) if ref.shape[0] < LANES else (weights, ref[...])
  acc[...] += _dot(step, *pair, _ROWS_BY_ROWS)


def _write(ref, sums):
  ref[...] = (sums if ref.shape[0] < LANES else sums.T).astype(ref.dtype)


def _in_log2(lse):
  return jnp.where(lse == -jnp.inf, _NOTHING, lse * LOG2_E)
