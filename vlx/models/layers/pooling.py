"""Pooling over rows and columns of `[B, H, W, C]`, where padding by a name does not say what is
wanted.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def max_pool_ceil(
  x: Float[Array, "batch height width channels"], window: int, stride: int
) -> Float[Array, "batch rows columns channels"]:
  """Maxima of windows from the upper left, the last reaching past the edge where a part would be
  left over.

  As in Caffe, and in torch with `ceil_mode`; "SAME" differs where the size is odd: it pads on both
  sides.
  """
  windows = [max(-((size - window) // -stride), 0) + 1 for size in x.shape[1:3]]
  padding = [(0, (n - 1) * stride + window - size) for n, size in zip(windows, x.shape[1:3])]
  return nn.max_pool(x, (window, window), (stride, stride), padding)


def _averages(source: int, target: int) -> np.ndarray:
  """`[target, source]` weights of the means over `target` stretches that cover `source`
  positions.
  """
  index, position = np.arange(target)[:, None], np.arange(source)[None, :]
  first, last = index * source // target, -((index + 1) * source // -target)
  inside = (first <= position) & (position < last)
  return inside / inside.sum(axis=1, keepdims=True)


def adaptive_average_pool(
  x: Float[Array, "batch height width channels"], size: tuple[int, int]
) -> Float[Array, "batch rows columns channels"]:
  """Means over a grid of `size` windows, cell i of n from ⌊i·H/n⌋ to ⌈(i+1)·H/n⌉, as in torch.

  Windows overlap where the size is no multiple, and repeat positions where the map is smaller than
  the grid.
  """
  if not all(x.shape[1:3]):
    raise ValueError(f"nothing to average in a map of {x.shape[1]}x{x.shape[2]}")
  if x.shape[1:3] == size:
    return x
  rows, columns = (jnp.asarray(_averages(s, t), x.dtype) for s, t in zip(x.shape[1:3], size))
  return jnp.einsum("yh,xw,bhwc->byxc", rows, columns, x, precision=jax.lax.Precision.HIGHEST)
