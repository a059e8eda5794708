"""Learned positions on a grid and their resampling to another resolution; rotary positions."""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int


def _linear_interpolation(source: int, target: int) -> np.ndarray:
  """`[target, source]` weights of linear interpolation whose first and last samples coincide."""
  if target == 1:  # no interval to divide: the first sample, as scipy.ndimage.zoom does
    return np.eye(1, source)
  position = np.linspace(0, source - 1, target)
  return np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(source)[None, :]))


def _cubic_interpolation(source: int, target: int) -> np.ndarray:
  """`[target, source]` weights of cubic convolution (Keys, 1981, eq. 4, there with a = -1/2).

  As torch's `interpolate(mode="bicubic")`: a = -3/4, cells of the two grids cover each other, what
  lies beyond the edge is the edge.
  """
  a = -0.75
  position = (np.arange(target) + 0.5) * source / target - 0.5
  taps = np.floor(position)[:, None] + np.arange(-1, 3)
  x = np.abs(position[:, None] - taps)
  near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
  weights = np.zeros((target, source))
  indices = np.clip(taps, 0, source - 1).astype(int)
  np.add.at(weights, (np.arange(target)[:, None], indices), np.where(x <= 1, near, far))
  return weights


_INTERPOLATIONS = {"linear": _linear_interpolation, "cubic": _cubic_interpolation}


def resample_positions(
  embedding: Float[Array, "1 length width"],
  source: tuple[int, int],
  target: tuple[int, int],
  method: str = "linear",
) -> Float[Array, "1 new_length width"]:
  """Resamples position embeddings of a `source` grid of patches to a `target` grid.

  "linear" is bilinear, corners on corners: `scipy.ndimage.zoom(order=1)` in the released code of ViT
  (vision_transformer/vit_jax/checkpoint.py; Dosovitskiy et al., 2021, §3.2). "cubic" is what Hugging Face
  does (`interpolate_pos_encoding`). Rows before the grid (the class token's) pass through unchanged.

  Args:
    embedding: `[1, prefix + h*w, D]` for the source grid `(h, w)`, row by row.
    source: (height, width) in patches that the embedding was made for.
    target: (height, width) in patches that is wanted.
    method: "linear" or "cubic".
  """
  if source == target:
    return embedding
  prefix = embedding.shape[1] - source[0] * source[1]
  head, grid = embedding[:, :prefix], embedding[:, prefix:]
  grid = rearrange(grid, "1 (h w) d -> h w d", h=source[0])
  rows, columns = (
    jnp.asarray(_INTERPOLATIONS[method](s, t), embedding.dtype) for s, t in zip(source, target)
  )
  grid = jnp.einsum("yh,xw,hwd->yxd", rows, columns, grid)
  return jnp.concatenate([head, rearrange(grid, "h w d -> 1 (h w) d")], axis=1)


def rotary_angles(
  positions: Int[Array, "batch length"], head_dim: int, theta: float
) -> Float[Array, "batch length half"]:
  """Position · θ^(−2i/head_dim), i < head_dim/2: what `rotate` turns pair i by (Su et al., 2021,
  eq. 15).
  """
  if head_dim % 2:
    raise ValueError(f"a head of {head_dim} features does not divide into pairs")
  frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
  return positions[..., None] * jnp.asarray(frequencies, jnp.float32)


def rotate(
  x: Float[Array, "batch length heads head_dim"], angles: Float[Array, "#batch length half"]
) -> Float[Array, "batch length heads head_dim"]:
  """Turns each pair of features (i, i + head_dim/2) by its angle, in f32.

  This is Hugging Face's layout. In the paper's and Meta's, pairs stand side by side, (2i, 2i + 1): the same
  function after a permutation of the features of queries and keys, which tables of names do to the kernels
  (vlx/pretrained/llama.py).
  """
  cos, sin = (f(angles)[:, :, None, :] for f in (jnp.cos, jnp.sin))
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x.dtype)
