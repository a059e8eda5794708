"""Scores of codes on a TPU: three passes of the matrix unit where XLA's f32 product takes six.

a = high + low with `high` of bf16's 8 bits, `low` the bf16 nearest to the rest; high·high +
high·low + low·high leaves out less than 3·2⁻¹⁸ of |a||b|, by Cauchy and Schwarz.
`nearest_code_xla.limit` turns that into what must be looked at again.

A tile of scores has codes on sublanes and rows on lanes: a row's best is carried per sublane, by
elementwise operations alone, and nothing but ids and limits leaves the kernel. Nothing is padded or
split outside of it, where copies of the codebook would be.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from vlx.ops import nearest_code_xla as xla

# relative error of a product: twice low·(what bf16 rounds off it), and low·low
PRODUCTS = 3.1 * 2.0**-18
_SUBLANES = 8


def candidates(
  x: Float[Array, "n dim"],
  codebook: Float[Array, "codes dim"],
  center: Float[Array, " dim"],
  radius: Float[Array, ""],
  cosine: bool,
  *,
  interpret: Any = False,
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
  """As `nearest_code_xla.candidates`."""
  (n, dim), num_codes = x.shape, codebook.shape[0]
  block = 512 if dim <= 512 else 256 if dim <= 1024 else 128  # tiles of 1 MB in f32
  row = pl.BlockSpec((1, block), lambda i, j: (0, i))
  ids, limits = pl.pallas_call(
    functools.partial(_kernel, num_codes=num_codes, cosine=cosine),
    grid=(pl.cdiv(n, block), pl.cdiv(num_codes, block)),
    in_specs=[
      pl.BlockSpec((block, dim), lambda i, j: (i, 0)),
      pl.BlockSpec((block, dim), lambda i, j: (j, 0)),
      pl.BlockSpec((1, dim), lambda i, j: (0, 0)),
      pl.BlockSpec(memory_space=pltpu.SMEM),
    ],
    out_specs=[row, row],
    out_shape=[jax.ShapeDtypeStruct((1, n), jnp.int32), jax.ShapeDtypeStruct((1, n), jnp.float32)],
    scratch_shapes=[
      pltpu.VMEM((dim, block), jnp.bfloat16),
      pltpu.VMEM((dim, block), jnp.bfloat16),
      pltpu.VMEM((1, block), jnp.float32),
      pltpu.VMEM((_SUBLANES, block), jnp.float32),
      pltpu.VMEM((_SUBLANES, block), jnp.float32),
      pltpu.VMEM((_SUBLANES, block), jnp.int32),
    ],
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
    interpret=interpret,
    name="nearest_code",
  )(x, codebook, center[None], radius[None])
  return ids[0], limits[0]


def _kernel(
  x_ref,
  codes_ref,
  center_ref,
  radius_ref,
  ids_ref,
  limits_ref,
  x_high_ref,
  x_low_ref,
  x_square_ref,
  best_ref,
  second_ref,
  slab_ref,
  *,
  num_codes,
  cosine,
):
  block = codes_ref.shape[0]
  tile = pl.program_id(1)

  @pl.when(tile == 0)
  def _():
    x_unit, _ = xla.unit(x_ref[...], cosine)
    x = (x_unit - center_ref[...]).T
    square = 1.01 * jnp.sum(x * x, axis=0, keepdims=True)
    if cosine:  # −1 marks a zero row
      square = jnp.where(jnp.max(jnp.abs(x_unit.T), axis=0, keepdims=True) == 0, -1, square)
    x_square_ref[...] = square
    x_high_ref[...], x_low_ref[...] = split(-2 * x)
    best_ref[...] = jnp.full_like(best_ref, jnp.inf)
    second_ref[...] = jnp.full_like(second_ref, jnp.inf)
    slab_ref[...] = jnp.zeros_like(slab_ref)

  codes, zero = xla.unit(codes_ref[...], cosine)
  codes = codes - center_ref[...]
  square = jnp.sum(codes * codes, axis=1, keepdims=True) + zero
  if num_codes % block:  # beyond the codebook there may be anything
    valid = tile * block + lax.broadcasted_iota(jnp.int32, (block, 1), 0) < num_codes
    codes, square = jnp.where(valid, codes, 0), jnp.where(valid, square, jnp.inf)
  high, low = split(codes)
  x_high, x_low = x_high_ref[...], x_low_ref[...]
  scores = square + (_dot(high, x_high) + (_dot(high, x_low) + _dot(low, x_high)))

  best, second, slab = best_ref[...], second_ref[...], slab_ref[...]
  for i in range(block // _SUBLANES):
    score = scores[i * _SUBLANES : (i + 1) * _SUBLANES]
    slab = jnp.where(score < best, tile * (block // _SUBLANES) + i, slab)
    second = jnp.minimum(second, jnp.maximum(best, score))
    best = jnp.minimum(best, score)
  best_ref[...], second_ref[...], slab_ref[...] = best, second, slab

  @pl.when(tile == pl.num_programs(1) - 1)
  def _():
    code = slab_ref[...] * _SUBLANES + lax.broadcasted_iota(jnp.int32, slab_ref.shape, 0)
    lowest = jnp.min(best_ref[...], axis=0, keepdims=True)
    ids = jnp.min(jnp.where(best_ref[...] == lowest, code, num_codes - 1), axis=0, keepdims=True)
    others = jnp.where(code == ids, second_ref[...], best_ref[...])
    limits = xla.limit(
      lowest,
      jnp.min(others, axis=0, keepdims=True),
      x_square_ref[...],
      radius_ref[0],
      dim=codes_ref.shape[1],
      products=PRODUCTS,
      cosine=cosine,
    )
    ids_ref[...], limits_ref[...] = xla.settle(x_square_ref[...] < 0, ids, limits)


def split(a):
  """a ≈ high + low, both bf16, off by at most 2⁻¹⁸ |a|; by bits, since compilers drop a cast and
  its reverse.
  """
  bits = lax.bitcast_convert_type(a, jnp.int32)
  high = lax.bitcast_convert_type((bits + 0x8000) & -0x10000, jnp.float32)
  return high.astype(jnp.bfloat16), (a - high).astype(jnp.bfloat16)


def _dot(a, b):
  return jnp.dot(a, b, preferred_element_type=jnp.float32)
