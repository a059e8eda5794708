"""Vector quantisation: the nearest code, gradients past it, and the statistics that move a
codebook.

van den Oord et al., "Neural Discrete Representation Learning", 2017 (VQ-VAE): the nearest code and
the straight-through gradient of §3.2, the statistics of the moving averages of appendix A.1. Cosine
distance as in the tokenizer of BEiT v2 and BEiT-3 (Peng et al., 2022, §3.1: rows and codes are
normalised).

`nearest_code` is exact whatever computes it: `nearest_code_xla` tells how.
"""

import functools
import importlib
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from vlx.ops import nearest_code_xla as xla
from vlx.ops.axes import BATCH_AXES

IMPLEMENTATIONS = ("auto", "reference", "xla", "pallas_tpu", "pallas_gpu")
DISTANCES = ("l2", "cosine")


def nearest_code(
  x: Float[ArrayLike, "*batch dim"],
  codebook: Float[ArrayLike, "codes dim"],
  *,
  distance: Literal["l2", "cosine"] = "l2",
  implementation: Literal["auto", "reference", "xla", "pallas_tpu", "pallas_gpu"] = "auto",
) -> Int[Array, "*batch"]:
  """int32 index of the code nearest to each row of `x`, the lowest of those as near. It carries no
  gradient.

  Nearest for the f32 or bf16 values as they stand: where f32 leaves it open, distances are compared
  in twice its digits. Squares of the values must neither overflow f32 nor vanish in it. The `[rows,
  codes]` matrix is never held.

  Where a mesh is set (`jax.set_mesh`) each device takes its part of the first axis of `x` (mesh
  axes `data`, `fsdp`; all of it if that does not divide) and the whole codebook. Inside a
  `shard_map` arrays are taken as they are.

  Args:
    distance: `l2`: squared; `cosine`: 1 − ⟨x, c⟩ / (|x||c|), 1 where either is zero.
    implementation: `reference` (row by row, for tests), `xla`, `pallas_tpu`, `pallas_gpu`; `auto`
      is the kernel of the platform that the program is lowered for, `xla` where there is none.
      Lowered for a CPU, `pallas_*` interpret their kernels: correct, and slow.

  Raises:
    ValueError: for an unknown name, or shapes that do not go together.
  """
  if distance not in DISTANCES:
    raise ValueError(f"distance {distance!r} is none of {', '.join(DISTANCES)}")
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f"implementation {implementation!r} is none of {', '.join(IMPLEMENTATIONS)}")
  x, codebook = jnp.asarray(x), jnp.asarray(codebook)
  if x.ndim < 1 or codebook.ndim != 2 or x.shape[-1] != codebook.shape[1] or not codebook.size:
    raise ValueError(f"rows {x.shape} and codes {codebook.shape} do not go together")
  find = functools.partial(_nearest, cosine=distance == "cosine", implementation=implementation)

  def local(axes, x, codebook):
    del axes
    return find(x.reshape(-1, x.shape[-1]), codebook).reshape(x.shape[:-1])

  return _over_rows(local, *lax.stop_gradient((x, codebook)), out_by_rows=True)


def straight_through(
  x: Float[Array, "*batch dim"], quantized: Float[Array, "*batch dim"]
) -> Float[Array, "*batch dim"]:
  """`quantized`, bit for bit where x is finite, with the gradient of the identity to x and none to
  `quantized`.

  van den Oord et al., 2017, §3.2.
  """
  return lax.stop_gradient(quantized) + (x - lax.stop_gradient(x)).astype(quantized.dtype)


def code_statistics(
  x: Float[ArrayLike, "*batch dim"],
  ids: Int[ArrayLike, "*batch"],
  num_codes: int,
  mask: Bool[ArrayLike, "*batch"] | None = None,
) -> tuple[Float[Array, " codes"], Float[Array, "codes dim"]]:
  """(rows of each code, their sum), f32: n and the sum of z in van den Oord et al., 2017, appendix A.1.

  Of all rows, on whatever devices they are; rows that are False in `mask` do not count. Rows are
  added where they belong: no one-hot matrix is held. Without gradient, as moving averages are.
  """
  x, ids = jnp.asarray(x), jnp.asarray(ids)
  mask = jnp.ones(ids.shape, bool) if mask is None else jnp.asarray(mask)

  def local(axes, x, ids, mask):
    # A row that does not count goes to a code that is not there; negative ids would count from the
    # end.
    ids = jnp.where(mask & (ids >= 0), ids, num_codes).reshape(-1)
    x = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    counts = jnp.zeros((num_codes,), jnp.int32).at[ids].add(1, mode="drop")  # f32 would stop at 2²⁴
    sums = jnp.zeros((num_codes, x.shape[1]), jnp.float32).at[ids].add(x, mode="drop")
    if axes:
      counts, sums = lax.psum((counts, sums), axes)
    return counts.astype(jnp.float32), sums

  return _over_rows(local, *lax.stop_gradient((x, ids, mask)), out_by_rows=False)


def _over_rows(local, x, *others, out_by_rows: bool):
  """local(axes, x, *others) on each device's part of the arrays' first axis.

  Arrays with the length of `x` go by rows when the result is a sum over them; a codebook goes
  whole.
  """
  mesh = jax.sharding.get_abstract_mesh()
  # All axes: a TPU's kernel is not lowered where any is left to the compiler.
  free = set(mesh.axis_names) - set(mesh.manual_axes)
  axes = tuple(a for a in BATCH_AXES if a in free)
  if not axes:
    return local((), x, *others)
  leading = x.shape[0] if x.ndim > 1 else 1
  size = 1
  for axis in axes:
    size *= mesh.shape[axis]
  by_rows = axes if leading % size == 0 else ()
  rows = P(by_rows or None) if x.ndim > 1 else P()
  whole = P() if out_by_rows else rows
  return jax.shard_map(
    functools.partial(local, by_rows),
    in_specs=(rows, *(whole for _ in others)),
    out_specs=rows if out_by_rows else P(),
    axis_names=free,
    check_vma=False,
  )(x, *others)


def _nearest(x, codebook, *, cosine, implementation):
  if not x.shape[0]:
    return jnp.zeros((0,), jnp.int32)
  if implementation == "reference":
    return xla.reference(x, codebook, cosine)
  center, radius = xla.center_and_radius(codebook, cosine)
  ids, limits = lax.platform_dependent(
    x, codebook, center, radius, **_candidates(cosine, implementation)
  )
  return xla.resolve(x, codebook, center, ids, limits, cosine)


def _candidates(cosine, implementation):
  """Finds candidates by the kernel of the platform lowered for."""

  def kernel(platform, interpret=False):
    # Only where used: a backend's own modules need not be there on every machine.
    module = importlib.import_module(f"vlx.ops.nearest_code_{platform}")
    return functools.partial(module.candidates, cosine=cosine, interpret=interpret)

  dense = functools.partial(xla.candidates, cosine=cosine)
  match implementation:
    case "xla":
      return {"default": dense}
    case "pallas_tpu":
      return {"tpu": kernel("tpu"), "cpu": kernel("tpu", interpret=True)}
    case "pallas_gpu":
      return {"cuda": kernel("gpu"), "cpu": kernel("gpu", interpret=True)}
    case _:
      return {"tpu": kernel("tpu"), "cuda": kernel("gpu"), "default": dense}
