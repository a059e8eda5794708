"""Keys and values of what a causal decoder has read, as an explicit pytree.

Slot s of a row holds the row's position s, whatever the other rows hold: rows of a batch grow at their own
pace. Texts are padded on the right. What padding writes stands beyond its row's length, where no query of the
row looks before a token has overwritten it; so one rule, "a query at position p sees the slots ≤ p"
(`vlx.ops.masks.UpTo`), serves prefill, decoding, and reading a second text after the first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

# Of all layers: one array for layers that are scanned, an array each for those that stand one by one. A slice
# of the one is a copy of the layer, on CPU, at every token.
Layers = Float[Array, "depth batch groups slots head_dim"] | tuple[Float[Array, "batch groups slots head_dim"], ...]


class Cache(NamedTuple):
  """Of all layers. `lengths` counts the positions of each row that are read."""

  keys: Layers
  values: Layers
  lengths: Int[Array, " batch"]

  @classmethod
  def empty(
      cls, depth: int, batch: int, slots: int, groups: int, head_dim: int, dtype: str, scanned: bool = True
  ) -> "Cache":
    shape = batch, groups, slots, head_dim
    make = lambda: (
        jnp.zeros((depth, *shape), dtype) if scanned else tuple(jnp.zeros(shape, dtype) for _ in range(depth))
    )
    return cls(make(), make(), jnp.zeros(batch, jnp.int32))

  def positions(self, count: int) -> Int[Array, "batch count"]:
    """Of the next `count` tokens of each row."""
    return self.lengths[:, None] + jnp.arange(count)

  def write(
      self,
      layer: Int[Array, ""] | int,
      keys: Float[Array, "batch length groups head_dim"],
      values: Float[Array, "batch length groups head_dim"],
  ) -> "Cache":
    """With the keys and values of the next tokens in a layer; what goes beyond the last slot is dropped."""
    rows, slots = jnp.arange(len(self.lengths))[:, None], self.positions(keys.shape[1])
    of_layers = {}
    for name, held, new in (("keys", self.keys, keys), ("values", self.values, values)):
      if isinstance(held, tuple):
        written = held[layer].at[rows, :, slots].set(new.astype(held[layer].dtype), mode="drop", unique_indices=True)
        of_layers[name] = (*held[:layer], written, *held[layer + 1 :])
      else:
        of_layers[name] = held.at[layer, rows, :, slots].set(
            new.astype(held.dtype), mode="drop", unique_indices=True
        )
    return self._replace(**of_layers)

  def layer(self, layer: Int[Array, ""] | int) -> tuple[
      Float[Array, "batch slots groups head_dim"], Float[Array, "batch slots groups head_dim"]
  ]:
    return tuple(rearrange(held[layer], "b g s d -> b s g d") for held in (self.keys, self.values))

  def advance(self, text_mask: Bool[Array, "batch length"]) -> "Cache":
    """After all layers have written: each row grows by its real tokens."""
    return self._replace(lengths=self.lengths + text_mask.sum(axis=1, dtype=jnp.int32))
