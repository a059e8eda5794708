"""Scores of codes on a GPU: a Triton kernel of three bf16 passes, split as in `nearest_code_tpu`.

bf16 products on tensor cores, where Triton would take f32 ones to the ordinary units or cut them to
tf32. A program holds one tile of rows and goes over the codes; norms are computed outside, vectors
that they are.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from vlx.ops import nearest_code_xla as xla
from vlx.ops.nearest_code_tpu import PRODUCTS, split

_ROWS, _CODES, _DIMS = 128, 128, 32


def candidates(
  x: Float[Array, "n dim"],
  codebook: Float[Array, "codes dim"],
  center: Float[Array, " dim"],
  radius: Float[Array, ""],
  cosine: bool,
  *,
  interpret: bool = False,
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
  """As `nearest_code_xla.candidates`."""
  n, dim = x.shape

  def norms(rows):
    rows_unit, zero = xla.unit(rows, cosine)
    return xla.norm_scale(rows, cosine)[:, 0], jnp.sum((rows_unit - center) ** 2, axis=1) + zero[
      :, 0
    ]

  whole = pl.BlockSpec(memory_space=pl.ANY)
  return pl.pallas_call(
    functools.partial(_kernel, dim=dim, cosine=cosine),
    grid=(pl.cdiv(n, _ROWS),),
    in_specs=[whole] * 8,
    out_specs=[whole] * 2,
    out_shape=[jax.ShapeDtypeStruct((n,), jnp.int32), jax.ShapeDtypeStruct((n,), jnp.float32)],
    compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=2),
    interpret=interpret,
    name="nearest_code",
  )(x, codebook, center, radius[None], *norms(x), *norms(codebook))


def _kernel(
  x_ref,
  codes_ref,
  center_ref,
  radius_ref,
  x_scale_ref,
  x_square_ref,
  code_scale_ref,
  code_square_ref,
  ids_ref,
  limits_ref,
  *,
  dim,
  cosine,
):
  (n, _), num_codes = x_ref.shape, codes_ref.shape[0]
  rows = pl.ds(pl.program_id(0) * _ROWS, _ROWS)
  is_row = pl.program_id(0) * _ROWS + jnp.arange(_ROWS) < n
  x_scale = _load(x_scale_ref, rows, is_row)

  def code_tile(tile, carry):
    best, second, ids = carry
    codes = pl.ds(tile * _CODES, _CODES)
    is_code = tile * _CODES + jnp.arange(_CODES) < num_codes
    code_scale = _load(code_scale_ref, codes, is_code)

    def products(part, total):
      dims = pl.ds(part * _DIMS, _DIMS)
      is_dim = part * _DIMS + jnp.arange(_DIMS) < dim
      center = _load(center_ref, dims, is_dim)

      def halves(ref, which, mask, scale):
        mask = mask[:, None] & is_dim[None, :]
        values = plgpu.load(ref.at[which, dims], mask=mask, other=0).astype(jnp.float32)
        return split(values * scale[:, None] - center[None, :])

      x_high, x_low = halves(x_ref, rows, is_row, x_scale)
      high, low = halves(codes_ref, codes, is_code, code_scale)
      return total + _dot(x_low, high) + _dot(x_high, low) + _dot(x_high, high)

    zeros = jnp.zeros((_ROWS, _CODES), jnp.float32)
    total = lax.fori_loop(0, pl.cdiv(dim, _DIMS), products, zeros)
    square = plgpu.load(code_square_ref.at[codes], mask=is_code, other=jnp.inf)
    scores = square[None, :] - 2 * total
    lowest = jnp.min(scores, axis=1)
    code = lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    which = jnp.min(jnp.where(scores == lowest[:, None], code, _CODES - 1), axis=1)
    next_lowest = jnp.min(jnp.where(code == which[:, None], jnp.inf, scores), axis=1)
    return (
      jnp.minimum(best, lowest),
      jnp.minimum(jnp.minimum(second, next_lowest), jnp.maximum(best, lowest)),
      jnp.where(lowest < best, tile * _CODES + which, ids),
    )

  infinite = jnp.full((_ROWS,), jnp.inf, jnp.float32)
  start = (infinite, infinite, jnp.zeros((_ROWS,), jnp.int32))
  best, second, ids = lax.fori_loop(0, pl.cdiv(num_codes, _CODES), code_tile, start)
  limits = xla.limit(
    best,
    second,
    1.01 * _load(x_square_ref, rows, is_row),
    radius_ref[0],
    dim=dim,
    products=PRODUCTS,
    cosine=cosine,
  )
  ids, limits = xla.settle(x_scale == 0, ids, limits)
  plgpu.store(ids_ref.at[rows], ids, mask=is_row)
  plgpu.store(limits_ref.at[rows], limits, mask=is_row)


def _load(ref, which, mask):
  return plgpu.load(ref.at[which], mask=mask, other=0)


def _dot(a, b):
  return lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
