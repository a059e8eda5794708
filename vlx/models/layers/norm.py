"""Normalisations that Flax lacks or does in another way."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class RMSNorm(nn.Module):
  """scale · x / √(mean(x²) + ε) over the last axis (Zhang & Sennrich, 2019, eq. 4).

  As LLaMA's released code does: divided in f32, rounded to `dtype`, and then scaled.
  """

  epsilon: float
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Float[Array, "*axes width"]) -> Float[Array, "*axes width"]:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    x = x.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon)
    return x.astype(self.dtype) * scale.astype(self.dtype)
