"""Keys and values of what a causal decoder has read, as an explicit pytree.

Slot s of a row holds the row's position s, whatever the other rows hold: rows of a batch grow at their own
pace. Texts are padded on the right. What padding writes stands beyond its row's length, where no query of the
row looks before a token has overwritten it; so one rule, "a query at position p sees the slots ≤ p"
(`vlx.ops.masks.UpTo`), serves prefill, decoding, and reading a second text after the first.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Cache(NamedTuple):
  """Of all layers. `lengths` counts the positions of each row that are read."""

  keys: Float[Array, "depth batch slots groups head_dim"]
  values: Float[Array, "depth batch slots groups head_dim"]
  lengths: Int[Array, " batch"]

  @classmethod
  def empty(cls, depth: int, batch: int, slots: int, groups: int, head_dim: int, dtype: str) -> "Cache":
    keys, values = (jnp.zeros((depth, batch, slots, groups, head_dim), dtype) for _ in range(2))
    return cls(keys, values, jnp.zeros(batch, jnp.int32))

  def positions(self, count: int) -> Int[Array, "batch count"]:
    """Of the next `count` tokens of each row."""
    return self.lengths[:, None] + jnp.arange(count)

  def write(
      self,
      layer: Int[Array, ""],
      keys: Float[Array, "batch length groups head_dim"],
      values: Float[Array, "batch length groups head_dim"],
  ) -> "Cache":
    """With the keys and values of the next tokens in a layer; what goes beyond the last slot is dropped."""
    rows, slots = jnp.arange(len(self.lengths))[:, None], self.positions(keys.shape[1])
    return self._replace(**{
        name: held.at[layer, rows, slots].set(new.astype(held.dtype), mode="drop", unique_indices=True)
        for name, held, new in (("keys", self.keys, keys), ("values", self.values, values))
    })

  def layer(self, layer: Int[Array, ""]) -> tuple[
      Float[Array, "batch slots groups head_dim"], Float[Array, "batch slots groups head_dim"]
  ]:
    return self.keys[layer], self.values[layer]

  def advance(self, text_mask: Bool[Array, "batch length"]) -> "Cache":
    """After all layers have written: each row grows by its real tokens."""
    return self._replace(lengths=self.lengths + text_mask.sum(axis=1, dtype=jnp.int32))
