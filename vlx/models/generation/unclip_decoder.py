"""unCLIP's decoder: an image for a CLIP embedding and a text.

Ramesh et al., "Hierarchical Text-Conditional Image Generation with CLIP Latents" (DALL-E 2), 2022, §2.1: ADM's network,
as GLIDE has it, with the image's CLIP embedding added to that of the step, and as four more tokens before the text's. In
training the embedding is left out one time in ten, the text every other time. The CLIP is a part, at rest.
"""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from vlx.models.layers.unet import Images, UNet

Embeddings = Float[Array, "batch dim"]
Tokens = Float[Array, "batch length features"]


class Projections(nn.Module):
  """(embeddings of image and text, the text's tokens) → (context, what is added to the step's embedding).

  Attributes:
    width: of the context.
    step_width: of what is added.
    extra_tokens: that the image's embedding becomes.
    dtype: of the computation.
  """

  width: int
  step_width: int
  extra_tokens: int = 4
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, image: Embeddings, given: Bool[Array, " batch"], text: Embeddings, tokens: Tokens
  ) -> tuple[Float[Array, "batch context width"], Float[Array, "batch step"]]:
    """Where it is not `given`, a learned vector stands for the image's embedding."""
    dense = lambda features, name: nn.Dense(features, dtype=self.dtype, name=name)
    nothing = self.param("nothing", nn.initializers.zeros, image.shape[1:])
    image = jnp.where(given[:, None], image, nothing)
    added = dense(self.step_width, "image")(image) + dense(self.step_width, "text")(text)
    extra = dense(self.extra_tokens * self.width, "extra_tokens")(image)
    extra = rearrange(extra, "b (w n) -> b n w", n=self.extra_tokens)  # Karlo's order
    tokens = nn.LayerNorm(1e-5, dtype=self.dtype, name="norm")(dense(self.width, "tokens")(tokens))
    return jnp.concatenate([extra, tokens], axis=1), added


class DecoderNetwork(nn.Module):
  """A UNet behind the projections of what it is conditioned on."""

  unet: UNet
  width: int  # of the context
  extra_tokens: int = 4

  def setup(self):
    self.projections = Projections(
      self.width, 4 * self.unet.width, self.extra_tokens, self.unet.dtype
    )

  def __call__(
    self,
    x: Images,
    t: Float[Array, " batch"] | Int[Array, " batch"],
    *,
    image: Embeddings,
    given: Bool[Array, " batch"],
    text: Embeddings,
    tokens: Tokens,
    mask: Bool[Array, "batch length"],
    train: bool = False,
  ) -> Float[Array, "batch height width out"]:
    context, added = self.projections(image, given, text, tokens)
    extra = jnp.ones((len(mask), self.extra_tokens), bool)
    return self.unet(
      x,
      t,
      embedding=added,
      context=context,
      context_mask=jnp.concatenate([extra, mask], axis=1),
      train=train,
    )
