"""unCLIP's decoder: an image for a CLIP embedding and a text.

Ramesh et al., "Hierarchical Text-Conditional Image Generation with CLIP Latents" (DALL-E 2), 2022, §2.1: ADM's network,
as GLIDE has it, with the image's CLIP embedding added to that of the step, and as four more tokens before the text's. In
training the embedding is left out one time in ten, the text every other time. The CLIP is a part, at rest.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from vlx.core import capabilities
from vlx.core.capabilities import EmbedsImages
from vlx.core.system import image_input, part, text_inputs
from vlx.models.generation.ddpm import DiffusionModel, PixelSampler
from vlx.models.generation.unclip_prior import Embeddings, ReadsText, read_text, unit
from vlx.models.layers.unet import Images, UNet

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnCLIPDecoder(DiffusionModel):
  """The system. Batches hold `image`, of the size that the CLIP takes, `text` and `text_mask`.

  It samples of a text and of an embedding of an image (`image_embedding`), which is that of an `image` where there is one,
  whose variations it makes; else the text's own.

  Attributes:
    clip: a part, at rest.
    clip_size: of images that it takes.
    context_width: of what is attended to beside the image.
    normalised: whether embeddings are brought to unit length, and numbers of 1 at the mean; else as they are.
    extra_tokens: that the image's embedding becomes.
    condition_dropout: how often training leaves the embedding out.
    text_dropout: how often it leaves the text out.
    no_text: ids of a text that stands for none; (): its embedding is 0, and no token is seen.
  """

  clip: ReadsText
  clip_size: int
  context_width: int
  normalised: bool = True
  extra_tokens: int = 4
  text_dropout: float = 0.5
  no_text: tuple[int, ...] = ()

  Sampler = PixelSampler
  takes_mask = False  # images are given at another size than they are sampled

  @property
  def x0_shape(self) -> tuple[int, int, int]:
    return (self.image_size, self.image_size, 3)

  @property
  def network(self) -> DecoderNetwork:
    return DecoderNetwork(self.unet, self.context_width, self.extra_tokens)

  def inputs(self):
    return {"image": image_input(self.clip_size), **text_inputs(self.text_length)}

  def _condition_inputs(self):
    return text_inputs(self.text_length)

  def _encode(self, variables, image, rng):
    """The image at the size of the samples."""
    del variables, rng
    return resized(image, self.image_size)

  def _decode(self, variables, x0):
    del variables
    return x0

  def embed_image(
    self, variables, image: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch dim"]:
    """The CLIP's.

    Raises:
      UserError: where there is its text tower alone.
    """
    capabilities.require(self.clip, EmbedsImages, what="to start from an image")
    return self.clip.embed_image(part(variables, "clip"), resized(image, self.clip_size))

  def _drawn(self, rng, rows):
    image, text = jax.random.split(rng)
    drawn = lambda rng, dropout: jax.random.bernoulli(rng, 1 - dropout, (rows,))
    return drawn(image, self.condition_dropout), drawn(text, self.text_dropout)

  def _condition(self, variables, inputs, given):
    clip, mask = part(variables, "clip"), inputs["text_mask"]
    pair = given if isinstance(given, tuple) else (given, given)
    image_given, text_given = (jnp.broadcast_to(x, (len(mask),)) for x in pair)
    if "image_embedding" in inputs:
      image = inputs["image_embedding"]
    elif "image" in inputs:  # whose variations are wanted, or that is learned of
      image = self.embed_image(variables, inputs["image"])
    else:
      image = self.clip.embed_text(clip, inputs["text"], mask)
      image_given &= mask.any(axis=1)
    scale = math.sqrt(image.shape[-1]) if self.normalised else 0.0
    told, tokens, mask = read_text(
      self.clip, clip, inputs, text_given, scale=scale, no_text=self.no_text
    )
    image = scale * unit(image) if scale else image
    return dict(image=image, given=image_given, text=told, tokens=tokens, mask=mask)


def resized(image: Images, side: int) -> Float[Array, "batch side side channels"]:
  """A square image at another size."""
  if image.shape[1] == side:
    return image
  return jax.image.resize(image, (len(image), side, side, image.shape[-1]), "linear")
