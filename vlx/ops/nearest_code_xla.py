"""Nearest codes without the `[N, K]` matrix: scores with a bound on their error, then an exact
look.

A score |c|² − 2⟨x, c⟩ orders the codes of a row x as |x − c|² does, and costs one product. It is
computed in low precision or in another order than another machine's, so it is off by up to a margin
that `limit` bounds. A row is *open* where a second code scores within the margin of the best:
there, every code within it is looked at again, in twice the digits of f32 (`resolve`). Few rows are
open unless codes are duplicates, so the cost is that of the scores; and the result does not depend
on how they were computed.

Codes and rows are first centred on the codes' mean. The margin is then in proportion to the spread
of the codes, not to their distance from the origin.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

F32_PRODUCTS = 2.0**-21  # relative error of a product at precision "highest", on any platform

# Rows × codes of a tile: its scores stay in a CPU core's cache.
_ROWS, _CODES = 512, 512
# Of a tile of open rows: with all that `resolve` holds, under 1 MB at 256 dimensions.
_OPEN_ROWS, _OPEN_CODES = 32, 128

_AS_NEAR = 2.0**-42  # relative; above what two sums of equal worth, in another order, differ by


def norm_scale(x: Float[Array, "n dim"], cosine: bool) -> Float[Array, "n 1"]:
  """The scale that normalises the rows, where `cosine`: 1 / |x|, 0 for a zero row. Else 1."""
  if not cosine:
    return jnp.ones((x.shape[0], 1), jnp.float32)
  square = jnp.sum(x.astype(jnp.float32) ** 2, axis=1, keepdims=True)
  return jnp.where(square > 0, lax.rsqrt(square), 0)


def unit(x: Float[Array, "n dim"], cosine: bool) -> tuple[jax.Array, jax.Array]:
  """(x in f32, normalised where `cosine`; 1 where a normalised row is zero, else 0, `[n, 1]`).

  Cosine distance is 1 to a zero vector, as to an orthogonal one. With the second term added to |c|²
  that holds of half the squared distance of unit vectors, too.
  """
  scale = norm_scale(x, cosine)
  x = x.astype(jnp.float32)
  return (x * scale if cosine else x), jnp.where(scale > 0, 0.0, 1.0)


def center_and_radius(
  codebook: Float[Array, "codes dim"], cosine: bool
) -> tuple[jax.Array, jax.Array]:
  """(mean code `[dim]`, a bound on the distance of any code from it `[]`)."""
  codes, _ = unit(codebook, cosine)
  center = jnp.mean(codes, axis=0)
  return center, 1.01 * jnp.sqrt(jnp.max(jnp.sum((codes - center) ** 2, axis=1)))


def limit(best, second, x_square, radius, *, dim: int, products: float, cosine: bool):
  """The highest score that the truly nearest code may have; −inf where that is the best one for
  sure.

  With x, c centred, the score's error is at most α|x||c| + γ|c|² + ε:

  - α: a product is off by `products` of its size, and `dim` additions of the accumulator by 2⁻²³
    each, in any order, be it by rounding or (tensor cores) by truncation; 8 more for centring and
    the rest.
  - γ: |c|² is a sum of `dim` terms in f32.
  - ε: what normalising leaves, where `cosine`: the norms' error, and the rounding of numbers up to
    1 before they are centred.

  A code nearer than the best is no further from x than that, so |c| ≤ |x| + distance.

  Args:
    best, second: the two lowest scores of the row.
    x_square: at least |x|².
    radius: at least |c| for every code.
  """
  alpha = 2 * (products + (dim + 8) * 2.0**-23)
  gamma = (dim + 8) * 2.0**-24
  eps = (4 * dim + 80) * 2.0**-24 + 2.0**-16 if cosine else 0.0
  x = jnp.sqrt(x_square)
  distance = jnp.sqrt(
    1.01 * (jnp.maximum(best + x_square, 0) + 2 * (alpha + gamma) * x_square + eps)
  )
  c = jnp.minimum(radius, x + distance)
  highest = best + 2 * (c * (alpha * x + gamma * c) + eps) + 1e-35  # below that, products underflow
  # What overflowed compares as false: it is open, to all codes.
  return jnp.where(second > highest, -jnp.inf, jnp.where(jnp.isnan(highest), jnp.inf, highest))


def settle(zero, ids, limits):
  """(ids, limits): by cosine, a zero row is as near to every code, so its code is the first."""
  return jnp.where(zero, 0, ids), jnp.where(zero, -jnp.inf, limits)


def _scores(
  x: Float[Array, "n dim"], codes, valid, center, cosine: bool
) -> Float[Array, "codes n"]:
  """Scores of centred rows; +inf for codes that are not `valid` `[codes]`."""
  codes, zero = unit(codes, cosine)
  codes = codes - center
  square = jnp.where(valid[:, None], jnp.sum(codes * codes, axis=1, keepdims=True) + zero, jnp.inf)
  return square + jnp.einsum("kd,nd->kn", codes, -2 * x, precision="highest")


def _tile(x, start, size):
  """(`size` rows of x from `start` or from what leaves as many; whether each is at or after `start`; first)."""
  first = jnp.minimum(start, x.shape[0] - size)
  rows = lax.dynamic_slice_in_dim(x, first, size)
  return rows, first + jnp.arange(size) >= start, first


def candidates(
  x: Float[Array, "n dim"], codebook: Float[Array, "codes dim"], center, radius, cosine: bool
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
  """(the code of the best score, `limit`) of each row: tiles of matrix products."""
  n, num_codes = min(_ROWS, x.shape[0]), min(_CODES, codebook.shape[0])

  def row_tile(i, result):
    rows, _, first_row = _tile(x, i * n, n)
    rows, zero = unit(rows, cosine)
    rows = rows - center

    def code_tile(j, carry):
      best, second, ids = carry
      codes, valid, first = _tile(codebook, j * num_codes, num_codes)
      scores = _scores(rows, codes, valid, center, cosine)
      # Three reductions over the major axis: vector instructions, where XLA's argmin on CPU is
      # scalar.
      lowest = scores.min(axis=0)
      code = lax.broadcasted_iota(jnp.int32, scores.shape, 0)
      which = jnp.where(scores == lowest, code, num_codes).min(axis=0)
      next_lowest = jnp.where(code == which, jnp.inf, scores).min(axis=0)
      second = jnp.minimum(jnp.minimum(second, next_lowest), jnp.maximum(best, lowest))
      return jnp.minimum(best, lowest), second, jnp.where(lowest < best, first + which, ids)

    infinite = jnp.full((n,), jnp.inf)
    start = (infinite, infinite, jnp.zeros((n,), jnp.int32))
    best, second, ids = lax.fori_loop(0, -(-codebook.shape[0] // num_codes), code_tile, start)
    limits = limit(
      best,
      second,
      1.01 * jnp.sum(rows * rows, axis=1),
      radius,
      dim=x.shape[1],
      products=F32_PRODUCTS,
      cosine=cosine,
    )
    ids, limits = settle(zero[:, 0] > 0, ids, limits)
    return tuple(
      lax.dynamic_update_slice_in_dim(whole, part, first_row, 0)
      for whole, part in zip(result, (ids, limits))
    )

  empty = jnp.zeros((x.shape[0],), jnp.int32), jnp.zeros((x.shape[0],), jnp.float32)
  return lax.fori_loop(0, -(-x.shape[0] // n), row_tile, empty)


def resolve(
  x: Float[Array, "n dim"], codebook: Float[Array, "codes dim"], center, ids, limits, cosine: bool
) -> Int[Array, " n"]:
  """`ids`, and for open rows the code that is nearest in twice the digits among those within the
  limit.
  """
  rows_at_once = min(_OPEN_ROWS, x.shape[0])
  is_open = limits > -jnp.inf
  order = jnp.sort(jnp.where(is_open, jnp.arange(x.shape[0]), x.shape[0]))
  count = jnp.sum(is_open)

  def chunk(state):
    start, ids = state
    rows = lax.dynamic_slice_in_dim(
      order, jnp.minimum(start, x.shape[0] - rows_at_once), rows_at_once
    )
    use = jnp.minimum(rows, x.shape[0] - 1)
    limit = jnp.where(rows < x.shape[0], limits[use], -jnp.inf)
    found = _nearest_within(x[use].astype(jnp.float32), codebook, center, limit, cosine)
    return start + rows_at_once, ids.at[rows].set(found, mode="drop")

  return lax.while_loop(lambda state: state[0] < count, chunk, (jnp.int32(0), ids))[1]


def _nearest_within(x, codebook, center, limits, cosine: bool) -> Int[Array, " n"]:
  """The nearest of the codes that score at most `limits`, the lowest of those as near."""
  num_codes = min(_OPEN_CODES, codebook.shape[0])
  centred = unit(x, cosine)[0] - center
  code = lax.broadcasted_iota(jnp.int32, (num_codes, x.shape[0]), 0)

  def code_tile(j, best):
    codes, valid, first = _tile(codebook, j * num_codes, num_codes)
    scores = _scores(centred, codes, valid, center, cosine)
    left = valid[:, None] & ~(scores > limits) & (limits > -jnp.inf)

    def look(state):
      left, next_code, (high, low, ids) = state
      here = next_code < num_codes
      new_high, new_low = _distance(x, codes[jnp.minimum(next_code, num_codes - 1)], cosine)
      difference = (new_high - high) + (new_low - low)
      nearer = here & (difference < -_AS_NEAR * jnp.abs(new_high))
      best = (
        jnp.where(nearer, new_high, high),
        jnp.where(nearer, new_low, low),
        jnp.where(nearer, first + next_code, ids),
      )
      left = left & (code != next_code)
      return left, first_left(left), best

    def first_left(left):
      return jnp.where(left, code, num_codes).min(axis=0)

    state = (left, first_left(left), best)
    return lax.while_loop(lambda state: jnp.any(state[1] < num_codes), look, state)[2]

  infinite = jnp.full((x.shape[0],), jnp.inf)
  start = (infinite, infinite, jnp.zeros((x.shape[0],), jnp.int32))
  return lax.fori_loop(0, -(-codebook.shape[0] // num_codes), code_tile, start)[2]


def reference(
  x: Float[Array, "n dim"], codebook: Float[Array, "codes dim"], cosine: bool
) -> Int[Array, " n"]:
  """Row by row: the first of the codes at the least distance, each in twice the digits."""

  def one(row):
    high, low = _distance(jnp.broadcast_to(row, codebook.shape), codebook, cosine)
    least = jnp.min(high)
    rest = jnp.min(jnp.where(high == least, low, jnp.inf))
    return jnp.argmax((high - least) + (low - rest) <= _AS_NEAR * jnp.abs(least)).astype(jnp.int32)

  return lax.map(one, x.astype(jnp.float32))


def _distance(x: Float[Array, "n dim"], c: Float[Array, "n dim"], cosine: bool):
  """Per row |x − c|², or what orders codes as cosine distance does, as a pair: high + low."""
  c = c.astype(jnp.float32)
  if not cosine:
    difference, rest = _two_sum(x, -c)
    return _total(*_plus(_square(difference), 2 * difference * rest))
  # cos·|cos|·|x|²: the digits of ⟨x, c⟩ and |c|² are exact, so the rest is, and |x| is the same for
  # all. Both sums as one: on a TPU each pair of arrays in a loop costs a table of 16 kB.
  inner, square = zip(*_total(*_product(jnp.stack([x, c]), c)))
  signed = _times(inner, tuple(jnp.sign(inner[0]) * part for part in inner))
  high, low = _over(signed, square)
  zero = square[0] == 0
  return jnp.where(zero, 0, -high), jnp.where(zero, 0, -low)


# Pairs of f32 whose sum has twice the digits (Dekker, 1971; Knuth's sum of two). Compilers fuse
# products into sums, which would lose the rounding error of a product: here only exact ones meet a
# sum.


def _two_sum(a, b):
  high = a + b
  of_b = high - a
  return high, (a - (high - of_b)) + (b - of_b)


def _halves(a):
  """a = high + low exactly, 12 bits each: the products of halves are exact."""
  high = lax.bitcast_convert_type(
    lax.bitcast_convert_type(a, jnp.int32) & jnp.int32(-4096), jnp.float32
  )
  return high, a - high


def _product(a, b):
  (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
  middle, least = _two_sum(a_high * b_low, a_low * b_high)
  high, low = _two_sum(a_high * b_high, middle)
  return high, low + (least + a_low * b_low)


def _square(a):
  return _product(a, a)


def _plus(a, small):
  return a[0], a[1] + small


def _times(a, b):
  return _plus(_product(a[0], b[0]), a[0] * b[1] + a[1] * b[0])


def _over(a, b):
  quotient = a[0] / b[0]
  high, low = _product(quotient, b[0])
  rest = ((a[0] - high) - low) + (a[1] - quotient * b[1])
  return _two_sum(quotient, rest / b[0])


def _total(high, low):
  """Sum over the last axis, by halves."""
  while (dim := high.shape[-1]) > 1:
    half = dim // 2
    both, error = _two_sum(high[..., :half], high[..., half : 2 * half])
    below = low[..., :half] + low[..., half : 2 * half] + error
    odd = slice(2 * half, dim)
    high = jnp.concatenate([both, high[..., odd]], axis=-1)
    low = jnp.concatenate([below, low[..., odd]], axis=-1)
  return _two_sum(high[..., 0], low[..., 0])
