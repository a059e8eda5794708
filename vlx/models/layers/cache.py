"""Keys and values of what a causal decoder has read, as an explicit pytree.

Slot s of a row holds the row's position s, whatever the other rows hold: rows of a batch grow at their own
pace. Texts are padded on the right. What padding writes stands beyond its row's length, where no query of the
row looks before a token has overwritten it; so one rule, "a query at position p sees the slots ≤ p"
(`vlx.ops.masks.UpTo`), serves prefill, decoding, and reading a second text after the first.
"""

from typing import NamedTuple

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

# Of all layers: one array for layers that are scanned, an array each for those that stand one by
# one. A slice of the one would be a copy of the layer, on CPU, at every token.
_OfLayer = Float[Array, "batch groups slots head_dim"]
OfLayers = Float[Array, "depth batch groups slots head_dim"] | tuple[_OfLayer, ...]


class Cache(NamedTuple):
  """Keys and values of all layers. `lengths` counts the positions of each row that are read."""

  keys: OfLayers
  values: OfLayers
  lengths: Int[Array, " batch"]

  @classmethod
  def empty(
    cls,
    depth: int,
    batch: int,
    slots: int,
    groups: int,
    head_dim: int,
    dtype: str,
    scanned: bool = True,
  ) -> "Cache":
    shape = batch, groups, slots, head_dim

    def zeros():
      if scanned:
        return jnp.zeros((depth, *shape), dtype)
      return tuple(jnp.zeros(shape, dtype) for _ in range(depth))

    return cls(zeros(), zeros(), jnp.zeros(batch, jnp.int32))

  def positions(self, count: int) -> Int[Array, "batch count"]:
    """Positions of the next `count` tokens of each row."""
    return self.lengths[:, None] + jnp.arange(count)

  def write(
    self,
    layer: Int[Array, ""] | int,
    keys: Float[Array, "batch length groups head_dim"],
    values: Float[Array, "batch length groups head_dim"],
  ) -> "Cache":
    """With the keys and values of the next tokens in a layer; what goes beyond the last slot is
    dropped.
    """
    rows, slots = jnp.arange(len(self.lengths))[:, None], self.positions(keys.shape[1])

    def put(held, new, *at):
      return held.at[*at, rows, :, slots].set(
        new.astype(held.dtype), mode="drop", unique_indices=True
      )

    def written(held, new):
      if isinstance(held, tuple):
        return (*held[:layer], put(held[layer], new), *held[layer + 1 :])
      return put(held, new, layer)

    return self._replace(keys=written(self.keys, keys), values=written(self.values, values))

  def layer(
    self, layer: Int[Array, ""] | int
  ) -> tuple[
    Float[Array, "batch slots groups head_dim"], Float[Array, "batch slots groups head_dim"]
  ]:
    return tuple(rearrange(held[layer], "b g s d -> b s g d") for held in (self.keys, self.values))

  def advance(self, text_mask: Bool[Array, "batch length"]) -> "Cache":
    """After all layers have written: each row grows by its real tokens."""
    return self._replace(lengths=self.lengths + text_mask.sum(axis=1, dtype=jnp.int32))
