"""How dense layers multiply."""

import math

import jax


def flat_dot_general(lhs, rhs, dimension_numbers, **kwargs):
  """`jax.lax.dot_general` of lhs's last axes with rhs's first, as one product of two matrices.

  The same numbers; but as JAX derives it, the gradient to the kernel of a `[batch, length,
  features]` input is a product over two axes and then a transpose, which takes XLA twice as long on
  CPU as that of matrices. For the `dot_general` field of Flax's dense layers.
  """
  (left, right), _ = dimension_numbers
  count = len(left)
  assert tuple(left) == tuple(range(lhs.ndim - count, lhs.ndim)) and tuple(right) == tuple(
    range(count)
  )
  contracted = math.prod(rhs.shape[:count])
  product = jax.lax.dot_general(
    lhs.reshape(-1, contracted), rhs.reshape(contracted, -1), (((1,), (0,)), ((), ())), **kwargs
  )
  return product.reshape(*lhs.shape[:-count], *rhs.shape[count:])
