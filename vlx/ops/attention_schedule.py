"""Which tiles a blocked attention visits, in which order: the grid of the TPU kernels.

`mask.tiles` says which tiles hold anything to see. Only those become steps of the grid, one row of
tiles after another (or one column after another, where a result belongs to keys), so cost follows
the visible area. What only the data tells comes as a table that a kernel reads while it runs: an
idle step names the tile of the step before it, which is in memory already.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int

from vlx.ops.masks import EMPTY, FULL, Keys, Mask

LANES = 128
# flags of a step; FIRST and LAST in its row (column) of tiles
FIRST, LAST, BUSY, WHOLE = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Steps:
  """int32 arrays `[steps]`: the tile of queries and of keys, and FIRST | LAST | BUSY | WHOLE.

  A row without any tile has one step, FIRST and LAST and not BUSY, that writes zeros.
  """

  q_tiles: np.ndarray
  k_tiles: np.ndarray
  flags: np.ndarray

  def __len__(self):
    return len(self.flags)

  @property
  def some_partial(self) -> bool:
    return bool(((self.flags & BUSY != 0) & (self.flags & WHOLE == 0)).any())

  @property
  def some_whole(self) -> bool:
    return bool((self.flags & WHOLE != 0).any())


def steps(kinds: Int[np.ndarray, "q_blocks k_blocks"], by_keys: bool = False) -> Steps:
  """The tiles that are not EMPTY, row by row; column by column with `by_keys`."""
  if by_keys:
    swapped = steps(kinds.T)
    return Steps(swapped.k_tiles, swapped.q_tiles, swapped.flags)
  visited = kinds != EMPTY
  visited[~visited.any(axis=1), 0] = True  # a row of nothing still writes its zeros
  row, column = np.nonzero(visited)
  kind = kinds[row, column]
  new_row = np.diff(row, prepend=-1) != 0
  flags = (
    FIRST * new_row
    + LAST * np.append(new_row[1:], True)
    + BUSY * (kind != EMPTY)
    + WHOLE * (kind == FULL)
  )
  return Steps(*(x.astype(np.int32) for x in (row, column, flags)))


def block_size(length: int, head_bytes: int) -> int:
  """The multiple of 128, from 256 on, that pads `length` least; the largest of those that tie.

  At most 640, by which a DALL-E of 1280 tokens pads nothing; 384 where a position has more than 512
  bytes per head, for the VMEM that the compiler grants.
  """
  if length <= LANES:
    return LANES
  largest = 640 if head_bytes <= 512 else 384
  return min(range(largest, LANES, -LANES), key=lambda block: -(-length // block) * block)


def with_padded_keys(mask: Mask, q_length: int, k_length: int, block_k: int) -> Mask:
  """`mask` that also hides the positions from `k_length` to the end of the last tile."""
  padded = -(-k_length // block_k) * block_k
  return mask if _hides(mask, q_length, k_length, padded) else mask & Keys(k_length)


def _hides(mask, q_length, first, last):
  if first == last:
    return True
  if mask.depends_on_data:
    return False
  return not np.any(mask.visible(np.arange(q_length)[:, None], np.arange(first, last)[None]))


def sources(
  mask: Mask, schedule: Steps, sizes: tuple[int, int, int, int]
) -> Int[Array, "#batch steps"] | None:
  """The step whose tile each step finds in memory: itself where it computes, else the last that
  did.

  None where nothing depends on data. `sizes` are those of `mask.may_see`.
  """
  if not mask.depends_on_data:
    return None
  busy = mask.may_see(*sizes)[:, schedule.q_tiles, schedule.k_tiles] & (schedule.flags & BUSY != 0)
  at = jnp.arange(len(schedule), dtype=jnp.int32)
  # -1 where none did yet: the first tile then, loaded for nothing once.
  return lax.cummax(jnp.where(busy, at, -1), axis=1)


@dataclasses.dataclass(frozen=True)
class Plan:
  """The facts that a kernel has before it runs."""

  steps: Steps
  mask: Any  # its tree, without arrays
  arrays_over: tuple[str, ...]  # "queries" or "keys", by array of the mask
  q_length: int
  k_length: int
  block_q: int
  block_k: int
  by_keys: bool
  whole_apart: bool  # whether tiles that are seen whole have a body of their own, without the mask
  interpreted: bool


def plan(queries, keys, mask, blocks, interpret, by_keys):
  """(plan, data): the data are what `sources` gives, and the mask's arrays as `[batch, 1, padded length]`."""
  q_length, k_length = queries.shape[1], keys.shape[1]
  head_bytes = queries.shape[3] * queries.dtype.itemsize
  block_q, block_k = blocks or (block_size(x, head_bytes) for x in (q_length, k_length))
  mask = with_padded_keys(mask, q_length, k_length, block_k)
  padded_k = -(-k_length // block_k) * block_k
  schedule = steps(mask.tiles(q_length, padded_k, block_q, block_k), by_keys)
  table = sources(mask, schedule, (q_length, k_length, block_q, block_k))
  if table is not None:
    table = jnp.broadcast_to(table, (queries.shape[0], len(schedule)))
  leaves, tree = jax.tree_util.tree_flatten_with_path(mask)
  over = tuple(path[-1].name for path, _ in leaves)
  arrays = []
  for name, (_, x) in zip(over, leaves):
    padding = -x.shape[1] % (block_q if name == "queries" else block_k)
    arrays.append(jnp.pad(x.astype(jnp.int32), ((0, 0), (0, padding)))[:, None])
  planned = Plan(
    schedule,
    tree,
    over,
    q_length,
    k_length,
    block_q,
    block_k,
    by_keys,
    # Up to two operations hide behind the products; two bodies are twice the code.
    whole_apart=schedule.some_whole and _operations(mask, block_q, block_k) > 2,
    interpreted=bool(interpret),
  )
  return planned, (table, arrays)


def _operations(mask, block_q, block_k):
  """How many operations on whole tiles the mask takes."""
  q, k = jnp.zeros((block_q, 1), jnp.int32), jnp.zeros((1, block_k), jnp.int32)
  mask = mask.with_arrays(lambda _: q, lambda _: k)
  equations = jax.make_jaxpr(lambda m, q, k: m.visible(q, k))(mask, q, k).eqns
  return sum(any(v.aval.shape == (block_q, block_k) for v in e.outvars) for e in equations)


def call(kernel, name, plan, data, inputs, outputs, scratch, *, heads, kv_heads, interpret):
  """The kernel over grid (batch, heads, steps), or (batch, kv_heads, steps, heads of the group) by
  keys.

  Inputs and outputs are `[batch, heads, dim, length]`, each over the positions of "query" or "key".
  """
  sources, arrays = data
  group = heads // kv_heads
  batch = inputs[0][0].shape[0]
  tables = (plan.steps.q_tiles, plan.steps.k_tiles, plan.steps.flags)
  prefetched = [jnp.asarray(x) for x in tables] + ([] if sources is None else [sources])

  def tile_of(over, ids, refs):
    """(head, tile): the head among those of `over`."""
    b, head, step, *rest = ids
    moves = over == ("query" if plan.by_keys else "key")
    source = refs[3][b, step] if moves and sources is not None else step
    tile = refs[0 if over == "query" else 1][jnp.maximum(source, 0)]
    if plan.by_keys:
      member = (
        rest[0] if sources is None else jnp.where(refs[3][b, step] == step, rest[0], group - 1)
      )
      return (head * group + member if over == "query" else head), tile
    return (head if over == "query" or group == 1 else lax.div(head, group)), tile

  dims = 4 if plan.by_keys else 3

  def spec(shape, over):
    block = plan.block_q if over == "query" else plan.block_k

    def index(*ids):
      head, tile = tile_of(over, ids[:dims], ids[dims:])
      return ids[0], head, 0, tile

    return pl.BlockSpec((None, None, shape[2], block), index)

  def array_spec(over):
    over = "query" if over == "queries" else "key"
    block = plan.block_q if over == "query" else plan.block_k
    return pl.BlockSpec(
      (None, 1, block), lambda *ids: (ids[0], 0, tile_of(over, ids[:dims], ids[dims:])[1])
    )

  turned_over, turned_block = ("keys", plan.block_k) if plan.by_keys else ("queries", plan.block_q)
  turned = [
    pltpu.VMEM((turned_block, LANES), jnp.int32) for over in plan.arrays_over if over == turned_over
  ]
  counts = (len(inputs), len(arrays), len(outputs), len(scratch))
  return pl.pallas_call(
    functools.partial(kernel, plan, len(prefetched), counts),
    name=name,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(prefetched),
      grid=(batch, kv_heads, len(plan.steps), group)
      if plan.by_keys
      else (batch, heads, len(plan.steps)),
      in_specs=[*(spec(x.shape, over) for x, over in inputs), *map(array_spec, plan.arrays_over)],
      out_specs=[spec(shape, over) for shape, _, over in outputs],
      scratch_shapes=[*scratch, *turned],
    ),
    out_shape=[
      jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(inputs[0][0]).manual_axis_type)
      for shape, dtype, _ in outputs
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary")[:dims]
    ),
    interpret=interpret,
  )(*prefetched, *(x for x, _ in inputs), *arrays)
