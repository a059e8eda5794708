"""Which query sees which key: masks as an algebra.

A mask answers three questions. Whether pair (q, k) is visible: `visible`, a function of integer
positions that a kernel can inline. Which tiles of a blocked computation are empty, partial or full:
`tiles`, before anything runs; and `may_see`, for what only the data tells. What the whole looks
like: `dense`, for tests and small inputs.

    PrefixCausal(256) & KeyPadding(text_mask)      Causal() & Segments.of(packed_ids)

A mask is a pytree. What depends on data (padding, packing) are its leaves, arrays over the queries
`[batch, length]` or over the keys `[batch, keys]`; all else is static and hashable.
"""

import dataclasses
import functools
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

EMPTY, PARTIAL, FULL = 0, 1, 2  # kinds of tiles

_FAR = 2**30  # beyond any position


class Mask:
  """Base of all; `a & b` sees what both see, `a | b` what either does."""

  depends_on_data = False

  def visible(self, q, k):
    """Whether query positions `q` see key positions `k`: integer arrays that broadcast, as the
    result does.

    The mask's own arrays must be of shapes that broadcast with them (see `with_arrays`).
    """
    raise NotImplementedError

  def _kinds(self, q, k):
    """Kinds of the tiles of first and last positions q = (first, last), k = (first, last).

    PARTIAL where it cannot tell.
    """
    del self
    return np.full(np.broadcast_shapes(q[0].shape, k[0].shape), PARTIAL, np.int8)

  def may_see(self, q_length: int, k_length: int, block_q: int, block_k: int):
    """`[#batch, q_blocks, k_blocks]`: False where the data leaves nothing to see in a tile."""
    return (self.tiles(q_length, k_length, block_q, block_k) != EMPTY)[None]

  def tiles(self, q_length: int, k_length: int, block_q: int, block_k: int) -> np.ndarray:
    """int8 `[q_blocks, k_blocks]` of EMPTY, PARTIAL and FULL; PARTIAL where that depends on
    data.
    """
    return _tiles(jax.tree.map(lambda _: None, self), q_length, k_length, block_q, block_k)

  def with_arrays(self, queries, keys) -> Self:
    """The mask with `queries(array)` for its arrays over queries, `keys(array)` for those over
    keys.
    """
    functions = {"queries": queries, "keys": keys}
    return jax.tree_util.tree_map_with_path(lambda path, x: functions[path[-1].name](x), self)

  def dense(self, q_length: int, k_length: int) -> Bool[Array, "#batch q_length k_length"]:
    """Every pair."""
    q, k = np.arange(q_length)[None, :, None], np.arange(k_length)[None, None, :]
    mask = self.with_arrays(lambda x: x[:, :, None], lambda x: x[:, None, :])
    return jnp.broadcast_to(mask.visible(q, k), (self.batch_size or 1, q_length, k_length))

  @property
  def batch_size(self) -> int | None:
    """The batch size of the data that the mask depends on; None where it depends on none."""
    return next((x.shape[0] for x in jax.tree.leaves(self)), None)

  def __and__(self, other: "Mask") -> "Mask":
    if isinstance(other, Full):
      return self
    return other if isinstance(self, Full) else And(self, other)

  def __or__(self, other: "Mask") -> "Mask":
    return Or(self, other)


def _mask(cls=None, *, data: tuple[str, ...] = ()):
  """A frozen dataclass that is a pytree: fields `data` are its arrays, the others are static."""
  if cls is None:
    return functools.partial(_mask, data=data)
  cls = dataclasses.dataclass(frozen=True)(cls)
  static = [f.name for f in dataclasses.fields(cls) if f.name not in data]
  return jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=static)


@functools.lru_cache(maxsize=256)
def _tiles(mask: Mask, q_length: int, k_length: int, block_q: int, block_k: int) -> np.ndarray:
  q, k = (
    (first, np.minimum(first + block, length) - 1)
    for first, block, length in (
      (np.arange(0, q_length, block_q)[:, None], block_q, q_length),
      (np.arange(0, k_length, block_k)[None, :], block_k, k_length),
    )
  )
  kinds = mask._kinds(q, k).astype(np.int8)
  if not mask.depends_on_data:
    for i, j in zip(*np.nonzero(kinds == PARTIAL)):
      seen = mask.visible(
        np.arange(q[0][i, 0], q[1][i, 0] + 1)[:, None], np.arange(k[0][0, j], k[1][0, j] + 1)[None]
      )
      kinds[i, j] = FULL if seen.all() else PARTIAL if seen.any() else EMPTY
  kinds.flags.writeable = False
  return kinds


class _Interval(Mask):
  """Query q sees keys lo(q) ≤ k ≤ hi(q); neither bound falls as q grows."""

  def bounds(self, q):
    raise NotImplementedError

  def visible(self, q, k):
    low, high = self.bounds(q)
    return (low <= k) & (k <= high)

  def _kinds(self, q, k):
    (low, high), (low_last, high_last) = self.bounds(q[0]), self.bounds(q[1])
    some = (low <= k[1]) & (k[0] <= high_last)
    full = (low_last <= k[0]) & (k[1] <= high)
    return np.where(full, FULL, np.where(some, PARTIAL, EMPTY))


@_mask
class Full(_Interval):
  """Everything sees everything."""

  def bounds(self, q):
    return 0 * q - _FAR, 0 * q + _FAR

  def visible(self, q, k):
    return np.bool_(True)


@_mask
class Causal(_Interval):
  """k ≤ q + offset. Where the queries are the last of the keys' positions, offset is keys −
  length.
  """

  offset: int = 0

  def bounds(self, q):
    return 0 * q - _FAR, q + self.offset

  def visible(self, q, k):
    return k <= (q + self.offset if self.offset else q)


@_mask
class PrefixCausal(_Interval):
  """Causal, and everything sees the first `prefix` keys."""

  prefix: int

  def bounds(self, q):
    return 0 * q - _FAR, (np if isinstance(q, np.ndarray) else jnp).maximum(q, self.prefix - 1)

  def visible(self, q, k):
    return (k <= q) | (k < self.prefix)


@_mask
class Window(_Interval):
  """−before ≤ k − q ≤ after."""

  before: int
  after: int = 0

  def bounds(self, q):
    return q - self.before, q + self.after


@_mask
class Keys(_Interval):
  """The first `length` keys; the rest is padding."""

  length: int

  def bounds(self, q):
    return 0 * q, 0 * q + self.length - 1

  def visible(self, q, k):
    return k < self.length


class _TextToImage(Mask):
  """DALL-E's rules: `text` positions, then a grid in raster order. Causal; all see the text."""

  text: int

  def sees(self, q, k):
    """Among image positions, counted from the first, where k ≤ q."""
    raise NotImplementedError

  def visible(self, q, k):
    return (k <= q) & ((k < self.text) | self.sees(q - self.text, k - self.text))


def _row_and_column(position, width: int):
  # No vector unit divides integers. Exact below 2^22: the half keeps the product off whole numbers.
  row = ((position + np.float32(0.5)) * np.float32(1 / width)).astype(np.int32)
  return row, position - row * width


@_mask
class Row(_TextToImage):
  """An image position sees itself and the `width` before it: back to its column one row up.

  DALL-E (Ramesh et al., 2021), Figure 11 (a).
  """

  text: int
  width: int

  def sees(self, q, k):
    return q - k <= self.width


@_mask
class Column(_TextToImage):
  """An image position sees its own column, up to itself: Figure 11 (b).

  With the image's positions in column-major order, `transposed`, a column's keys stand together:
  Figure 11 (c).
  """

  text: int
  height: int
  width: int
  transposed: bool = False

  def sees(self, q, k):
    part = 0 if self.transposed else 1
    side = self.height if self.transposed else self.width
    return _row_and_column(q, side)[part] == _row_and_column(k, side)[part]


@_mask
class Conv(_TextToImage):
  """An image position sees the `size` × `size` square around it, up to itself: Figure 11 (d).

  In raster order, "with wraparound behavior (similar to the row attention)": what the square has
  beyond an edge is the other end of the row before or after.
  """

  text: int
  width: int
  size: int = 11

  def sees(self, q, k):
    reach = self.size // 2
    rows, _ = _row_and_column(q - k + reach, self.width)
    # Where the square is wider than the grid, its last row reaches further than one row would.
    rows = (np if isinstance(rows, np.ndarray) else jnp).minimum(rows, reach)
    return q - k - rows * self.width <= reach


@_mask(data=("queries", "keys"))
class Segments(Mask):
  """A query sees the keys of its own segment; 0 is padding, which neither sees nor is seen."""

  queries: Int[Array, "batch length"]
  keys: Int[Array, "batch keys"]

  depends_on_data = True

  @classmethod
  def of(cls, ids: Int[Array, "batch length"]) -> Self:
    """The mask of self-attention."""
    return cls(ids, ids)

  @classmethod
  def per_image(cls, starts: Bool[Array, "batch length"], images: int, tokens: int) -> Self:
    """Each text token sees the `tokens` keys of the image that began last at or before it, if any
    did.

    Flamingo (Alayrac et al., 2022), §2.4. The keys are those of `images` images, one after another.
    """
    keys = jnp.broadcast_to(
      jnp.repeat(jnp.arange(1, images + 1), tokens), (starts.shape[0], images * tokens)
    )
    return cls(jnp.cumsum(starts, axis=1, dtype=jnp.int32), keys)

  def visible(self, q, k):
    return (self.queries == self.keys) & (self.queries != 0)

  def may_see(self, q_length, k_length, block_q, block_k):
    (q_min, q_max), (k_min, k_max) = _ranges(self.queries, block_q), _ranges(self.keys, block_k)
    return (q_min[:, :, None] <= k_max[:, None, :]) & (k_min[:, None, :] <= q_max[:, :, None])


@_mask(data=("keys",))
class KeyPadding(Mask):
  """Keys whose entry is not 0 (or False) are seen, by all."""

  keys: Bool[Array, "batch keys"]

  depends_on_data = True

  def visible(self, q, k):
    return self.keys != 0

  def may_see(self, q_length, k_length, block_q, block_k):
    used = _blocks(self.keys, block_k).any(axis=2)[:, None, :]
    return jnp.broadcast_to(used, (len(used), -(-q_length // block_q), used.shape[2]))


@_mask(data=("queries",))
class UpTo(Mask):
  """A query sees the keys k ≤ its entry: causal, where queries stand at positions of their own
  (a cache).
  """

  queries: Int[Array, "batch length"]

  depends_on_data = True

  def visible(self, q, k):
    return k <= self.queries

  def may_see(self, q_length, k_length, block_q, block_k):
    return np.arange(0, k_length, block_k) <= _blocks(self.queries, block_q).max(axis=2)[:, :, None]


@_mask(data=("queries",))
class At(Mask):
  """The view of `mask` that a query at the position in its entry has: queries of positions of their own (a
  cache).
  """

  mask: Mask
  queries: Int[Array, "batch length"]

  depends_on_data = True

  def visible(self, q, k):
    return self.mask.visible(self.queries, k)


def _blocks(ids: Int[Array, "batch length"], block: int) -> Int[Array, "batch blocks block"]:
  padded = jnp.pad(ids, ((0, 0), (0, -ids.shape[1] % block)))
  return padded.reshape(ids.shape[0], -1, block)


def _ranges(ids, block):
  """(min, max) of the ids that are not padding in each block; (_FAR, -_FAR) where all are."""
  blocks = _blocks(ids, block)
  return (
    jnp.where(blocks == 0, _FAR, blocks).min(axis=2),
    jnp.where(blocks == 0, -_FAR, blocks).max(axis=2),
  )


class _Pair(Mask):
  left: Mask
  right: Mask

  @property
  def depends_on_data(self):
    return self.left.depends_on_data or self.right.depends_on_data


@_mask(data=("left", "right"))
class And(_Pair):
  """The pairs that both masks see."""

  left: Mask
  right: Mask

  def visible(self, q, k):
    return self.left.visible(q, k) & self.right.visible(q, k)

  def _kinds(self, q, k):
    return np.minimum(self.left._kinds(q, k), self.right._kinds(q, k))

  def may_see(self, *sizes):
    return self.left.may_see(*sizes) & self.right.may_see(*sizes)


@_mask(data=("left", "right"))
class Or(_Pair):
  """The pairs that either mask sees."""

  left: Mask
  right: Mask

  def visible(self, q, k):
    return self.left.visible(q, k) | self.right.visible(q, k)

  def _kinds(self, q, k):
    return np.maximum(self.left._kinds(q, k), self.right._kinds(q, k))

  def may_see(self, *sizes):
    return self.left.may_see(*sizes) | self.right.may_see(*sizes)
