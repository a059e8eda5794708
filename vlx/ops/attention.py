"""Attention: softmax(scale · q·kᵀ) · v over the pairs that a mask lets through.

Vaswani et al., "Attention Is All You Need", 2017, §3.2.1; by tiles, with the softmax carried along
and recomputed for the gradients: Dao et al., "FlashAttention", 2022, and Dao, "FlashAttention-2",
2023. Grouped queries: Ainslie et al., "GQA", 2023.

Every implementation but `reference` is a pair of functions, which `attention` makes one
differentiable whole:

    forward(queries, keys, values, mask, scale) -> out, lse
    backward(queries, keys, values, d_out, lse, delta, mask, scale) -> d_queries, d_keys, d_values

lse f32 `[batch, heads, length]` is the logarithm of the softmax's denominator; from it the weights
of any tile can be had again, so nothing of size length × keys is kept for the gradients. delta, of
the same shape, is Σ d_out · out − d_lse. Here stands the dense pair, for XLA; the kernels are in
`attention_tpu` and `attention_gpu`.
"""

import functools
import importlib
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from vlx.ops.axes import BATCH_AXES, HEAD_AXIS
from vlx.ops.masks import Full, Mask

IMPLEMENTATIONS = ("auto", "reference", "xla", "pallas_tpu", "pallas_gpu")


def attention(
  queries: Float[Array, "batch length heads head_dim"],
  keys: Float[Array, "batch keys groups head_dim"],
  values: Float[Array, "batch keys groups head_dim"],
  *,
  mask: Mask = Full(),
  scale: float | None = None,
  implementation: str = "auto",
  return_lse: bool = False,
) -> (
  Float[Array, "batch length heads head_dim"]
  | tuple[Float[Array, "batch length heads head_dim"], Float[Array, "batch heads length"]]
):
  """softmax(scale · q·kᵀ) · v. A query that sees nothing gets zeros, and passes no gradient on.

  `auto` takes the kernels where the program is lowered for a TPU or a CUDA GPU and there are at
  least 2^16 pairs, and 128 positions on either side: below that a kernel's tiles are mostly
  padding, and the scores of the dense form are few, as they are when tokens are decoded one by one.
  Everywhere else, and for head dims above 256 or types other than f32 and bf16, it takes `xla`,
  which on CPU is faster than `jax.nn.dot_product_attention`.

  The kernels load and compute only the tiles that the mask leaves. Where a mesh is set
  (`jax.set_mesh`) they run on each device's part of the batch (mesh axes `data`, `fsdp`) and of the
  heads (`tensor`); what an axis does not divide stays whole on it. Inside a `shard_map` they take
  the arrays as they are.

  Args:
    queries: f32 or bf16; f64 too for `reference` and `xla`. f32 is multiplied as f32 on every
      device.
    keys: `groups` divides `heads`; heads h·r … h·r + r − 1, r = heads / groups, share group h.
    values: as `keys`.
    mask: which query sees which key. Its arrays have the batch's size, or 1.
    scale: positive; 1/√head_dim where None.
    implementation: `reference` (plain, differentiated by JAX), `xla` (dense), `pallas_tpu`,
      `pallas_gpu` or `auto`. Lowered for a CPU, `pallas_*` interpret their kernels: correct, and
      slow.
    return_lse: also the log of the softmax's denominator, −∞ for a query that sees nothing.

  Raises:
    ValueError: for an unknown implementation, shapes or types that do not go together, a scale not
      above 0.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f"implementation {implementation!r} is none of {', '.join(IMPLEMENTATIONS)}")
  mask, scale = _checked(queries, keys, values, mask, scale)
  if implementation == "reference":
    out, lse = _reference(queries, keys, values, mask, scale)
  else:
    if implementation == "auto" and not _kernel_pays(queries, keys):
      implementation = "xla"
    queries, keys, values, mask = _equally_varying((queries, keys, values, mask))
    out, lse = _attend(queries, keys, values, mask, scale, implementation)
  return (out, lse) if return_lse else out


def attention_weights(
  queries: Float[Array, "batch length heads head_dim"],
  keys: Float[Array, "batch keys groups head_dim"],
  *,
  mask: Mask = Full(),
  scale: float | None = None,
) -> Float[Array, "batch heads length keys"]:
  """softmax(scale · q·kᵀ), at least f32, to be looked at: `attention` never makes this array.

  Arguments and errors as of `attention`. Zeros for a query that sees nothing.
  """
  mask, scale = _checked(queries, keys, keys, mask, scale)
  scores = _scores(_by_group(queries, keys), _by_head(keys), mask, scale, queries.shape[1])
  weights, total, _ = _exponentials(scores)
  weights = weights / jnp.where(total == 0, 1, total)
  return rearrange(weights, "b g (r t) s -> b (g r) t s", t=queries.shape[1])


def _checked(queries, keys, values, mask, scale):
  """(the mask with int32 arrays of the batch's size, the scale)."""
  (batch, length, heads, head_dim), (_, keys_length, groups, _) = queries.shape, keys.shape
  if (
    keys.shape != values.shape
    or keys.shape[0] != batch
    or keys.shape[3] != head_dim
    or heads % groups
  ):
    raise ValueError(
      f"queries {queries.shape}, keys {keys.shape}, values {values.shape} do not go together"
    )
  if not queries.dtype == keys.dtype == values.dtype:
    raise ValueError(
      f"queries {queries.dtype}, keys {keys.dtype} and values {values.dtype} differ in type"
    )

  def checked(size, what):
    def of(x):
      if x.ndim != 2 or x.shape[0] not in (1, batch) or x.shape[1] != size:
        raise ValueError(f"the mask's array over {what} is {x.shape}, not {(batch, size)}")
      return jnp.broadcast_to(x.astype(jnp.int32), (batch, size))

    return of

  if scale is not None and scale <= 0:
    raise ValueError(f"scale {scale} is not positive")
  mask = mask.with_arrays(checked(length, "queries"), checked(keys_length, "keys"))
  return mask, 1 / math.sqrt(head_dim) if scale is None else scale


def _kernel_pays(queries, keys) -> bool:
  length, keys_length, head_dim = queries.shape[1], keys.shape[1], queries.shape[3]
  return (
    queries.dtype in (jnp.float32, jnp.bfloat16)
    and head_dim <= 256
    and min(length, keys_length) >= 128
    and length * keys_length >= 2**16
  )


def _equally_varying(tree):
  """Inside a `shard_map`: the arrays as varying over every axis that any of them varies over."""
  axes = frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(tree)))

  def vary(x):
    missing = tuple(axes - jax.typeof(x).manual_axis_type.varying)
    return jax.lax.pcast(x, missing, to="varying") if missing else x

  return jax.tree.map(vary, tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(queries, keys, values, mask, scale, implementation):
  return _run("forward", (queries, keys, values), mask, scale, implementation)


def _attend_forward(queries, keys, values, mask, scale, implementation):
  out, lse = _attend(queries, keys, values, mask, scale, implementation)
  return (out, lse), (queries, keys, values, mask, out, lse)


def _attend_backward(scale, implementation, saved, cotangents):
  queries, keys, values, mask, out, lse = saved
  d_out, d_lse = cotangents
  delta = jnp.einsum("bthd,bthd->bht", d_out.astype(lse.dtype), out.astype(lse.dtype)) - d_lse
  delta = jnp.where(lse == -jnp.inf, 0, delta)  # whatever came back for a row that sees nothing
  gradients = _run(
    "backward", (queries, keys, values, d_out, lse, delta), mask, scale, implementation
  )
  return *gradients, None


_attend.defvjp(_attend_forward, _attend_backward)


# Jitted so that layers of a size trace and lower the kernels, those of all platforms, once.
@functools.partial(jax.jit, static_argnames=("direction", "scale", "implementation"))
def _run(direction: str, operands, mask: Mask, scale: float, implementation: str):
  """forward(*operands, mask, scale) or backward, of the implementation."""
  dense = functools.partial(
    _dense_forward if direction == "forward" else _dense_backward, scale=scale
  )
  if implementation == "xla":
    return dense(*operands, mask)

  def kernel(platform, interpret=False):
    function = getattr(_kernels(platform), direction)
    return functools.partial(
      _over_devices, functools.partial(function, scale=scale, interpret=interpret), direction
    )

  match implementation:
    case "pallas_tpu":
      of_platform = {"tpu": kernel("tpu"), "cpu": kernel("tpu", interpret=True)}
    case "pallas_gpu":
      of_platform = {"cuda": kernel("gpu"), "cpu": kernel("gpu", interpret=True)}
    case "auto":
      of_platform = {"tpu": kernel("tpu"), "cuda": kernel("gpu"), "default": dense}

  def run(*arguments):
    return jax.lax.platform_dependent(*arguments, **of_platform)

  return _mapped_into_batch(run)(*operands, mask)


def _kernels(platform: str):
  # Imported where used: not every machine has all of Pallas' backends.
  return importlib.import_module(f"vlx.ops.attention_{platform}")


def _mapped_into_batch(function):
  """The function; under `vmap` the mapped axis becomes part of the batch, for kernels know no
  other.
  """
  function = jax.custom_batching.custom_vmap(function)

  @function.def_vmap
  def _(size, mapped, *arguments):
    def fold(x, is_mapped):
      x = x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))
      return rearrange(x, "n b ... -> (n b) ...")

    outputs = function(*jax.tree.map(fold, arguments, tuple(mapped)))
    unfolded = jax.tree.map(lambda x: rearrange(x, "(n b) ... -> n b ...", n=size), outputs)
    return unfolded, jax.tree.map(lambda _: True, outputs)

  return function


def _over_devices(kernel, direction: str, *operands_and_mask):
  """The kernel on each device's rows and heads, where a mesh is set.

  XLA does not know how to split a kernel. This stands inside the forward and the backward, so no
  gradient passes through it, and devices that hold the same rows and heads compute the same.
  """
  *operands, mask = operands_and_mask
  mesh = jax.sharding.get_abstract_mesh()
  sizes = {
    axis: mesh.shape[axis]
    for axis, kind in zip(mesh.axis_names, mesh.axis_types)
    if kind != AxisType.Manual
  }
  if not sizes:
    return kernel(*operands, mask)
  (batch, *_), groups = operands[0].shape, operands[1].shape[2]
  rows = ()
  for axis in BATCH_AXES:
    if axis in sizes and batch % math.prod(sizes[a] for a in (*rows, axis)) == 0:
      rows += (axis,)
  heads = HEAD_AXIS if groups % sizes.get(HEAD_AXIS, groups + 1) == 0 else None
  rows = rows or None
  of_array, of_statistic = P(rows, None, heads, None), P(rows, heads, None)
  outputs = jax.shard_map(
    kernel,
    in_specs=(
      *(of_array if x.ndim == 4 else of_statistic for x in operands),
      jax.tree.map(lambda _: P(rows, None), mask),
    ),
    out_specs=(of_array, of_statistic) if direction == "forward" else (of_array,) * 3,
    axis_names=set(sizes),
    check_vma=False,
  )(*operands, mask)
  return _equally_varying((operands, outputs))[1]  # over axes of a `shard_map` around this one


def _reference(queries, keys, values, mask, scale):
  dtype = jnp.promote_types(queries.dtype, jnp.float32)
  share = queries.shape[2] // keys.shape[2]
  q, k, v = (
    queries.astype(dtype),
    *(jnp.repeat(x.astype(dtype), share, axis=2) for x in (keys, values)),
  )
  seen = mask.dense(q.shape[1], k.shape[1])[:, None]
  some = seen.any(axis=-1, keepdims=True)
  scores = scale * jnp.einsum("bthd,bshd->bhts", q, k, precision="highest")
  highest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True, where=seen, initial=-jnp.inf))
  highest = jnp.where(some, highest, 0)
  weights = jnp.exp(jnp.where(seen, scores - highest, -jnp.inf))
  total = jnp.where(some, weights.sum(axis=-1, keepdims=True), 1)
  out = jnp.einsum("bhts,bshd->bthd", weights / total, v, precision="highest")
  lse = jnp.where(some, jnp.log(total) + highest, -jnp.inf)
  return out.astype(queries.dtype), lse[..., 0]


def _dense_forward(queries, keys, values, mask, scale):
  q, k, v = _by_group(queries, keys), _by_head(keys), _by_head(values)
  scores = _scores(q, k, mask, scale, queries.shape[1])
  weights, total, highest = _exponentials(scores)
  # Divided last: head_dim numbers a row, not as many as there are keys.
  out = _dot("bgqk,bgkd->bgqd", weights.astype(v.dtype), v) / jnp.where(total == 0, 1, total)
  lse = rearrange(highest + jnp.log(total), "b g (r t) 1 -> b (g r) t", t=queries.shape[1])
  return _by_position(out, queries), lse


def _dense_backward(queries, keys, values, d_out, lse, delta, mask, scale):
  q, k, v, d_out = (
    _by_group(queries, keys),
    _by_head(keys),
    _by_head(values),
    _by_group(d_out, keys),
  )
  lse, delta = (rearrange(x, "b (g r) t -> b g (r t) 1", g=k.shape[1]) for x in (lse, delta))
  lse = jnp.where(lse == -jnp.inf, jnp.inf, lse)
  weights = jnp.exp(_scores(q, k, mask, scale, queries.shape[1]) - lse)
  d_values = _dot("bgqk,bgqd->bgkd", weights.astype(q.dtype), d_out)
  d_scores = (scale * weights * (_dot("bgqd,bgkd->bgqk", d_out, v) - delta)).astype(q.dtype)
  d_queries = _dot("bgqk,bgkd->bgqd", d_scores, k)
  d_keys = _dot("bgqk,bgqd->bgkd", d_scores, q)
  return _by_position(d_queries, queries), *(
    rearrange(x, "b g s d -> b s g d").astype(k.dtype) for x in (d_keys, d_values)
  )


def _exponentials(scores):
  """exp(scores − highest), their sum and the highest of each row; 0, 0 and 0 of a row of −∞."""
  highest = scores.max(axis=-1, keepdims=True)
  highest = jnp.where(highest == -jnp.inf, 0, highest)
  weights = jnp.exp(scores - highest)
  return weights, weights.sum(axis=-1, keepdims=True), highest


def _scores(q, k, mask, scale, length):
  """scale · q·kᵀ, −∞ where the mask hides it: `[batch, groups, share · length, keys]`, at least
  f32.
  """
  scores = scale * _dot("bgqd,bgkd->bgqk", q, k)
  if isinstance(mask, Full):
    return scores
  positions = (
    jax.lax.broadcasted_iota(jnp.int32, shape, axis)
    for shape, axis in (((1, length, 1), 1), ((1, 1, k.shape[2]), 2))
  )
  # Of positions, not of `dense`: the compiler fuses it, and no array of pairs becomes part of the
  # program.
  seen = mask.with_arrays(lambda x: x[:, :, None], lambda x: x[:, None, :]).visible(*positions)
  by_share = rearrange(scores, "b g (r t) s -> b g r t s", t=length)
  return jnp.where(seen[:, None, None], by_share, -jnp.inf).reshape(scores.shape)


def _dot(pattern, x, y):
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  return jnp.einsum(pattern, x, y, precision="highest", preferred_element_type=dtype)


# Heads before length: batched products of contiguous matrices, on CPU twice as fast as length
# before heads. The heads of a group stand below one another: one product with the keys they share.


def _by_head(x):
  return rearrange(x, "b s g d -> b g s d")


def _by_group(x, keys):
  return rearrange(x, "b t (g r) d -> b g (r t) d", g=keys.shape[2])


def _by_position(x, queries):
  return rearrange(x, "b g (r t) d -> b t (g r) d", t=queries.shape[1]).astype(queries.dtype)
