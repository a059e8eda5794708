"""Convolutions that several systems share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def _convolve(x, kernel):
  return jax.lax.conv_general_dilated(
    x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def _convolve_by_slices(x, kernel):
  """The same as nine strided slices and one matrix product."""
  height, width = x.shape[1:3]
  # "SAME" at an even size and stride 2 pads below and to the right only.
  padded = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
  slices = [padded[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]
  return jnp.concatenate(slices, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


class Downsample(nn.Module):
  """3x3 convolution of stride 2 without bias, for even sizes.

  XLA's convolution gradients are slow on CPU: there the same sum is taken as a matrix product.
  """

  features: int
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, x: Float[Array, "batch height width channels"]
  ) -> Float[Array, "batch rows columns features"]:
    kernel = self.param("kernel", nn.initializers.he_normal(), (3, 3, x.shape[-1], self.features))
    x, kernel = jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype)
    if x.shape[1] % 2 or x.shape[2] % 2:
      raise ValueError(f"an image of {x.shape[1]}x{x.shape[2]} cannot be halved")
    return jax.lax.platform_dependent(x, kernel, cpu=_convolve_by_slices, default=_convolve)
