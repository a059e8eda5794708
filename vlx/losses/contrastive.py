"""Pure losses that several systems use, exact over a batch that is spread over devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from vlx.ops.axes import BATCH_AXES

Similarity = Callable[[jax.Array, jax.Array], jax.Array]


def cosine_similarity(x: Float[Array, "n dim"], y: Float[Array, "m dim"]) -> Float[Array, "n m"]:
  """⟨x, y⟩ / (‖x‖ ‖y‖) for all pairs, in f32: a scale of 100 would make 0.5 of bf16's rounding."""
  return inner_product(normalize(x.astype(jnp.float32)), normalize(y.astype(jnp.float32)))


def inner_product(x: Float[Array, "n dim"], y: Float[Array, "m dim"]) -> Float[Array, "n m"]:
  """⟨x, y⟩ for all pairs, summed in f32."""
  return jnp.einsum("nd,md->nm", x, y, preferred_element_type=jnp.float32)


def negative_l2(x: Float[Array, "n dim"], y: Float[Array, "m dim"]) -> Float[Array, "n m"]:
  """−‖x − y‖₂ for all pairs, by ‖x‖² − 2⟨x, y⟩ + ‖y‖²."""
  x, y = x.astype(jnp.float32), y.astype(jnp.float32)
  squares = jnp.sum(x * x, -1)[:, None] + jnp.sum(y * y, -1)[None, :] - 2 * inner_product(x, y)
  # The root has no gradient at zero, and rounding can make a square negative.
  return -jnp.sqrt(jnp.maximum(squares, 1e-12))


SIMILARITIES: dict[str, Similarity] = {
  "cosine": cosine_similarity,
  "inner_product": inner_product,
  "negative_l2": negative_l2,
}


def normalize(x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
  """x / ‖x‖₂ along the last axis, zero where x is zero."""
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))


def _over_batch_axes(block, *arrays):
  """Calls block(axes, *arrays) on each device's rows of `arrays`; a scalar must come back.

  `axes` are the mesh axes that split the rows: empty where no mesh is set.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(a for a in BATCH_AXES if a in mesh.axis_names)
  if not axes:
    return block((), *arrays)
  specs = tuple(P(axes) if a.ndim else P() for a in arrays)
  return jax.shard_map(lambda *local: block(axes, *local), in_specs=specs, out_specs=P())(*arrays)


def _sum(x, axes):
  return jax.lax.psum(x, axes) if axes else x


def _gather(x, axes):
  return jax.lax.all_gather(x, axes, tiled=True) if axes else x


def _first_row(rows: int, axes) -> jax.Array | int:
  """Where this device's rows begin in the global batch."""
  return jax.lax.axis_index(axes) * rows if axes else 0


def info_nce(
  x: Float[Array, "batch dim"],
  y: Float[Array, "batch dim"],
  scale: Float[Array, ""],
  similarity: Similarity = cosine_similarity,
) -> Float[Array, ""]:
  """Symmetric InfoNCE: ½ (CE over rows + CE over columns) of scale · similarity(x, y).

  Exact over the global batch. A device holds its own rows of the similarity matrix and no more:
  the columns' normaliser is a sum over devices, so the matrix is computed once for both directions.

  van den Oord et al., 2018; in this form Radford et al., 2021 (CLIP), Figure 3.

  Args:
    x: embeddings, row i matching row i of `y`; neither needs to be normalised.
    y: as `x`.
    scale: the inverse temperature.
    similarity: of all pairs, `[n, dim] × [m, dim] → [n, m]`.
  """

  def block(axes, x, y, scale):
    rows, batch = x.shape[0], _gather(y, axes)
    logits = scale * similarity(x, batch)
    positives = jnp.take_along_axis(
      logits, (_first_row(rows, axes) + jnp.arange(rows))[:, None], axis=1
    )[:, 0]
    row_normalizer = jax.nn.logsumexp(logits, axis=1)
    highest = jax.lax.stop_gradient(logits).max(axis=0)
    if axes:
      highest = jax.lax.pmax(highest, axes)
    column_normalizer = jnp.log(_sum(jnp.exp(logits - highest).sum(axis=0), axes)) + highest
    local = 0.5 * row_normalizer.sum() - positives.sum()
    total = batch.shape[0]
    return (_sum(local, axes) + 0.5 * column_normalizer.sum()) / total

  return _over_batch_axes(block, x, y, scale)


def sigmoid_contrastive(
  x: Float[Array, "batch dim"],
  y: Float[Array, "batch dim"],
  scale: Float[Array, ""],
  bias: Float[Array, ""],
  similarity: Similarity = cosine_similarity,
) -> Float[Array, ""]:
  """SigLIP: −1/B ΣᵢΣⱼ log σ(zᵢⱼ (scale · similarity(xᵢ, yⱼ) + bias)), z = +1 on the diagonal, else
  −1.

  Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023, eq. 1. Exact over the global
  batch; a device holds its own rows of the matrix.
  """

  def block(axes, x, y, scale, bias):
    rows, batch = x.shape[0], _gather(y, axes)
    logits = scale * similarity(x, batch) + bias
    diagonal = (_first_row(rows, axes) + jnp.arange(rows))[:, None] == jnp.arange(batch.shape[0])
    local = -jax.nn.log_sigmoid(jnp.where(diagonal, logits, -logits)).sum()
    return _sum(local, axes) / batch.shape[0]

  return _over_batch_axes(block, x, y, scale, bias)
