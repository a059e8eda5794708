"""Attention on a GPU: kernels by Triton (through Pallas), forward and backward.

Dao, "FlashAttention-2", 2023, §3: a program holds one tile of queries, goes over the tiles of keys, and
carries the softmax along. For the gradients the weights are recomputed from the log-sum-exp: one kernel holds
a tile of queries (dq), one a tile of keys and values and goes over the queries of all heads that share them
(dk, dv). Nothing is added up in memory, so results are the same bit for bit from run to run.

A program reads from its row of a plan which tiles to visit: first those that the mask leaves whole,
which are not masked, then those in part. Tiles that it leaves nothing of are not in the plan, nor,
since XLA makes the plan as the program runs where the mask has data, those that only the data
empties.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from vlx.ops.masks import FULL, PARTIAL, Mask

_LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class _Tile:
  """Queries and keys of a tile, and the warps (of 32 threads) that share a program's work."""

  q: int
  k: int
  warps: int


def _tile(kernel: str, dtype, padded_dim: int) -> _Tile:
  """The largest tried that keep all in registers: `ptxas -v` of CUDA 12.9 for sm_90 counts no
  spills.
  """
  # the ordinary units multiply it, and a thread holds whole rows of the operands
  if dtype == jnp.float32:
    own, other, warps = 32 if padded_dim > 128 else 64, 32 if padded_dim <= 64 else 16, 8
  elif padded_dim > 128:
    own, other, warps = 128 if kernel == "forward" else 64, 32, 8
  else:
    own, other, warps = 128 if kernel == "forward" else 64, 64, 4 if padded_dim <= 64 else 8
  return _Tile(other, own, warps) if kernel == "dkv" else _Tile(own, other, warps)


def forward(
  queries: Float[Array, "batch length heads head_dim"],
  keys: Float[Array, "batch keys groups head_dim"],
  values: Float[Array, "batch keys groups head_dim"],
  mask: Mask,
  scale: float,
  *,
  interpret: bool = False,
) -> tuple[Float[Array, "batch length heads head_dim"], Float[Array, "batch heads length"]]:
  """(out, log-sum-exp): see `vlx.ops.attention`."""
  call = _Call.of(queries, keys, mask, "forward")
  scale_2 = scale * _LOG2_E

  def kernel(visit, q_tile, seen, q_ref, k_ref, v_ref, out_ref, lse_ref):
    q = q_tile.load(q_ref)

    def step(k_tile, carry, masked):
      out, highest, total = carry
      scores = _dot(q, k_tile.load(k_ref), "qd,kd->qk")
      if masked:
        scores = jnp.where(seen(k_tile), scores, -jnp.inf)
      higher = jnp.maximum(highest, scores.max(axis=1))
      reference = scale_2 * (jnp.where(higher == -jnp.inf, 0, higher) if masked else higher)
      weights = jnp.exp2(scale_2 * scores - reference[:, None])
      shrink = jnp.exp2(scale_2 * highest - reference)
      v = k_tile.load(v_ref)
      out = out * shrink[:, None] + _dot(weights.astype(v.dtype), v, "qk,kd->qd")
      return out, higher, total * shrink + weights.sum(axis=1)

    zeros = jnp.zeros((call.tile.q,), jnp.float32)
    out, highest, total = visit(step, (call.zeros(call.tile.q), zeros - jnp.inf, zeros))
    q_tile.store(out_ref, out / jnp.where(total == 0, 1, total)[:, None])
    q_tile.store(lse_ref, scale * highest + jnp.log2(total) / _LOG2_E)

  return call.over_queries(
    kernel,
    (queries, keys, values),
    (queries, jax.ShapeDtypeStruct(call.rows, jnp.float32)),
    interpret,
  )


def backward(
  queries: Float[Array, "batch length heads head_dim"],
  keys: Float[Array, "batch keys groups head_dim"],
  values: Float[Array, "batch keys groups head_dim"],
  d_out: Float[Array, "batch length heads head_dim"],
  lse: Float[Array, "batch heads length"],
  delta: Float[Array, "batch heads length"],
  mask: Mask,
  scale: float,
  *,
  interpret: bool = False,
) -> tuple[
  Float[Array, "batch length heads head_dim"],
  Float[Array, "batch keys groups head_dim"],
  Float[Array, "batch keys groups head_dim"],
]:
  """The gradients: see `vlx.ops.attention`."""
  operands = (queries, keys, values, d_out, lse, delta)
  d_queries = _backward_queries(operands, mask, scale, interpret)
  return d_queries, *_backward_keys(operands, mask, scale, interpret)


def _backward_queries(operands, mask, scale, interpret):
  queries, keys, *_ = operands
  call = _Call.of(queries, keys, mask, "dq")

  def kernel(visit, q_tile, seen, q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, dq_ref):
    q, d_out, delta = q_tile.load(q_ref), q_tile.load(d_out_ref), q_tile.load(delta_ref)[:, None]
    lse_2 = _in_base_2(q_tile.load(lse_ref))[:, None]

    def step(k_tile, dq, masked):
      k = k_tile.load(k_ref)
      scores = _dot(q, k, "qd,kd->qk")
      if masked:
        scores = jnp.where(seen(k_tile), scores, -jnp.inf)
      weights = jnp.exp2((scale * _LOG2_E) * scores - lse_2)
      d_scores = weights * (_dot(d_out, k_tile.load(v_ref), "qd,kd->qk") - delta)
      return dq + _dot(d_scores.astype(k.dtype), k, "qk,kd->qd")

    q_tile.store(dq_ref, scale * visit(step, call.zeros(call.tile.q)))

  return call.over_queries(kernel, operands, (queries,), interpret)[0]


def _backward_keys(operands, mask, scale, interpret):
  queries, keys, values, *_ = operands
  call = _Call.of(queries, keys, mask, "dkv")

  def kernel(
    visit, k_tile, seen, q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, dk_ref, dv_ref
  ):
    k, v = k_tile.load(k_ref), k_tile.load(v_ref)

    def of_head(head, carry):
      def step(q_tile, carry, masked):
        dk, dv = carry
        # Keys by queries, so that no product needs a transposed tile of weights. Of rows beyond the
        # last all that is loaded is 0, and so is what they add.
        q, d_out = q_tile.load(q_ref, head), q_tile.load(d_out_ref, head)
        lse_2, delta = (
          _in_base_2(q_tile.load(lse_ref, head))[None],
          q_tile.load(delta_ref, head)[None],
        )
        scores = _dot(k, q, "kd,qd->kq")
        if masked:
          scores = jnp.where(seen(q_tile), scores, -jnp.inf)
        weights = jnp.exp2((scale * _LOG2_E) * scores - lse_2)
        dv += _dot(weights.astype(q.dtype), d_out, "kq,qd->kd")
        d_scores = weights * (_dot(v, d_out, "kd,qd->kq") - delta)
        return dk + _dot(d_scores.astype(q.dtype), q, "kq,qd->kd"), dv

      return visit(step, carry)

    dk, dv = jax.lax.fori_loop(0, call.share, of_head, (call.zeros(call.tile.k),) * 2)
    k_tile.store(dk_ref, scale * dk)
    k_tile.store(dv_ref, dv)

  return call.over_keys(kernel, operands, (keys, values), interpret)


def _dot(x, y, pattern):
  """In f32 from f32 (the default would be tf32); bf16 in one pass, summed in f32."""
  precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  return jnp.einsum(pattern, x, y, precision=precision, preferred_element_type=jnp.float32)


def _in_base_2(lse):
  """The log-sum-exp in base 2; +∞, hence weights of 0, for a query that sees nothing."""
  return jnp.where(lse == -jnp.inf, jnp.inf, lse) * _LOG2_E


@dataclasses.dataclass(frozen=True)
class _Rows:
  """`size` positions from `start` on. Those from `limit` on are not there: loaded as 0, not
  stored.
  """

  start: Int[Array, ""]
  size: int
  limit: int | None  # None where all are there
  head_dim: int

  @property
  def positions(self):
    return self.start + jax.lax.iota(jnp.int32, self.size)

  def _index(self, ref, head):
    """(index, mask) of the rows of `[length, head_dim]` or `[length]`, or of one head of several."""
    rows, there = pl.ds(self.start, self.size), None
    if self.limit is not None:
      there = self.positions < self.limit
    if ref.ndim == (1 if head is None else 2):
      return (rows,) if head is None else (head, rows), there
    padded_dim = ref.shape[-1]
    if there is not None:
      there = there[:, None]
    if padded_dim != self.head_dim:
      columns = jax.lax.iota(jnp.int32, padded_dim)[None, :] < self.head_dim
      there = columns if there is None else there & columns
    if there is not None:
      there = jnp.broadcast_to(there, (self.size, padded_dim))
    return (rows, slice(None)) if head is None else (rows, head, slice(None)), there

  def load(self, ref, head=None):
    index, there = self._index(ref, head)
    return plgpu.load(ref.at[index], mask=there, other=None if there is None else 0)

  def store(self, ref, value):
    index, there = self._index(ref, None)
    plgpu.store(ref.at[index], value.astype(ref.dtype), mask=there)


@dataclasses.dataclass(frozen=True)
class _Call:
  """The facts that the kernels share: sizes, what they hold of the operands, which tiles they visit."""

  batch: int
  length: int
  heads: int
  keys_length: int
  groups: int
  head_dim: int
  padded_dim: int
  mask: Mask
  tile: _Tile
  name: str

  @classmethod
  def of(cls, queries, keys, mask, name):
    (*_, head_dim), (_, keys_length, groups, _) = queries.shape, keys.shape
    # A size that is no power of two is filled up with zeros as it is loaded; 16 is the least that
    # multiplies.
    padded_dim = max(pl.next_power_of_2(head_dim), 16)
    tile = _tile(name, queries.dtype, padded_dim)
    return cls(*queries.shape[:3], keys_length, groups, head_dim, padded_dim, mask, tile, name)

  @property
  def share(self):
    return self.heads // self.groups

  @property
  def rows(self):
    return self.batch, self.heads, self.length

  def zeros(self, rows):
    return jnp.zeros((rows, self.padded_dim), jnp.float32)

  def _queries(self, tile, whole=False):
    del whole  # of a tile that the mask leaves whole the last queries may be missing
    limit = self.length if self.length % self.tile.q else None
    return _Rows(tile * self.tile.q, self.tile.q, limit, self.head_dim)

  def _keys(self, tile, whole=False):
    limit = self.keys_length if self.keys_length % self.tile.k and not whole else None
    return _Rows(tile * self.tile.k, self.tile.k, limit, self.head_dim)

  def over_queries(self, kernel, operands, outputs, interpret):
    """kernel(visit, q_tile, seen, *refs), run for every tile of queries of every head.

    visit(step, carry) calls carry = step(k_tile, carry, masked) for the tiles to visit;
    seen(k_tile) says what of a tile is visible. The outputs are of queries.
    """
    return self._run(kernel, operands, outputs, interpret, by_keys=False)

  def over_keys(self, kernel, operands, outputs, interpret):
    """kernel(visit, k_tile, seen, *refs), run for every tile of keys of every group of heads.

    As `over_queries`, the sides swapped: of the queries' side it sees all heads of the group.
    """
    return self._run(kernel, operands, outputs, interpret, by_keys=True)

  def _run(self, kernel, operands, outputs, interpret, by_keys):
    kinds = self._kinds()
    plan = _plan(kinds, self.mask, self.length, self.keys_length, self.tile, by_keys)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(self.mask)
    of_own, of_other = (self._keys, self._queries) if by_keys else (self._queries, self._keys)
    mine = [(path[-1].name == "keys") == by_keys for path, _ in leaves]  # of the mask's arrays

    def run(plan_ref, *refs):
      mask_refs, refs = refs[: len(mine)], refs[len(mine) :]
      own = of_own(plan_ref[0])
      own_arrays = [own.load(ref)[:, None] if m else None for m, ref in zip(mine, mask_refs)]

      def seen(other):
        arrays = [
          other.load(ref)[None] if x is None else x for x, ref in zip(own_arrays, mask_refs)
        ]
        positions = own.positions[:, None], other.positions[None]
        q, k = reversed(positions) if by_keys else positions
        visible = jax.tree.unflatten(treedef, arrays).visible(q, k)
        if self.keys_length % self.tile.k:
          visible &= k < self.keys_length
        return jnp.broadcast_to(visible, (own.size, other.size))

      def visit(step, carry):
        for kind, first, last in ((FULL, 0, plan_ref[1]), (PARTIAL, plan_ref[1], plan_ref[2])):
          if (kinds == kind).any():
            carry = jax.lax.fori_loop(
              first,
              last,
              lambda j, c: step(of_other(plan_ref[3 + j], whole=kind == FULL), c, kind == PARTIAL),
              carry,
            )
        return carry

      kernel(visit, own, seen, *refs)

    def of_queries(x):
      heads = self.share if by_keys else None
      if x.ndim == 3:
        return pl.BlockSpec((None, heads, self.length), lambda i, head, b: (b, head, 0))
      block = (None, self.length, heads, self.padded_dim)
      return pl.BlockSpec(block, lambda i, head, b: (b, 0, head, 0))

    def of_keys(_):
      share = 1 if by_keys else self.share
      block = (None, self.keys_length, None, self.padded_dim)
      return pl.BlockSpec(block, lambda i, head, b: (b, 0, jax.lax.div(head, share), 0))

    queries, keys, values, *others = operands
    varying = jax.typeof(queries).manual_axis_type
    of_outputs = of_keys if by_keys else of_queries
    return pl.pallas_call(
      run,
      grid=(plan.shape[1], self.groups if by_keys else self.heads, self.batch),
      in_specs=[
        pl.BlockSpec(
          (None, None, plan.shape[2]), lambda i, head, b: (b if len(plan) > 1 else 0, i, 0)
        ),
        *(pl.BlockSpec((None, x.shape[1]), lambda i, head, b: (b, 0)) for _, x in leaves),
        of_queries(queries),
        of_keys(keys),
        of_keys(values),
        *map(of_queries, others),
      ],
      out_specs=[of_outputs(x) for x in outputs],
      out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying) for x in outputs],
      compiler_params=plgpu.CompilerParams(num_warps=self.tile.warps, num_stages=2),
      name=f"attention_{self.name}",
      interpret=interpret,
    )(plan, *(x for _, x in leaves), *operands)

  def _kinds(self):
    """The kinds of the tiles; the last keys are PARTIAL where they do not fill their tile."""
    kinds = self.mask.tiles(self.length, self.keys_length, self.tile.q, self.tile.k)
    if self.keys_length % self.tile.k:
      kinds = np.concatenate([kinds[:, :-1], np.minimum(kinds[:, -1:], PARTIAL)], axis=1)
    return kinds


def _plan(
  kinds: Int[np.ndarray, "q_blocks k_blocks"],
  mask: Mask,
  length,
  keys_length,
  tile: _Tile,
  by_keys: bool,
) -> Int[Array, "#batch programs 3+tiles"]:
  """Which tiles each program visits; of those of keys (`by_keys`) or of queries, the longest first.

  A row holds the program's own tile, the number of FULL tiles, that of FULL and PARTIAL ones
  together, and the other side's tiles in this order.
  """
  own = 1 if by_keys else 0
  order = 2 - kinds[None].astype(np.int32)  # 0 FULL, 1 PARTIAL, 2 EMPTY
  rows = np.argsort((order[0] == 2).sum(axis=1 - own), stable=True).astype(np.int32)
  if mask.depends_on_data:
    may = mask.may_see(length, keys_length, tile.q, tile.k)
    order = jnp.where(may | (order == 0), order, 2)
  order = order.swapaxes(1, 1 + own)[:, rows]
  tiles = order.argsort(axis=2, stable=True)
  numpy = jnp if mask.depends_on_data else np
  columns = [
    numpy.broadcast_to(rows[:, None], (*order.shape[:2], 1)),
    (order == 0).sum(axis=2, keepdims=True),
    (order < 2).sum(axis=2, keepdims=True),
    tiles,
  ]
  return numpy.concatenate([x.astype(np.int32) for x in columns], axis=2)
