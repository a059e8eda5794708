"""unCLIP, all its stages one after another: a prior, a decoder, upsamplers.

Ramesh et al., "Hierarchical Text-Conditional Image Generation with CLIP Latents" (DALL-E 2), 2022, §2 and §3: the parts
are runs, or parts of Karlo; nothing is learned here. From an image there are variations of it; with another image, what
lies between both; with a text that it shows and one that it should, the way along their difference.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vlx.core.capabilities import SamplesImageEmbeddings
from vlx.core.system import part
from vlx.models.generation.ddpm import PixelSampler
from vlx.models.generation.unclip_decoder import UnCLIPDecoder
from vlx.models.generation.unclip_prior import Embeddings, unit
from vlx.models.generation.unclip_upsampler import UnCLIPUpsampler


@dataclasses.dataclass(frozen=True)
class UnCLIPSampler:
  """How images are sampled.

  Attributes:
    num_steps: of the decoder.
    guidance_scale: of the decoder.
    eta: of the decoder; of variations, how free they are.
    method: of the decoder and the upsamplers (`vlx.inference.samplers.Sampler`).
    spacing: of all stages' steps (the same).
    prior_steps: of a prior by diffusion.
    prior_guidance_scale: of the prior.
    prior_bound: what its numbers are kept below; 0: they are not.
    draws: of the prior, of which the nearest to the text is kept.
    upsampler_steps: of each upsampler.
  """

  num_steps: int = 50
  guidance_scale: float = 3.0
  eta: float = 0.0
  method: str = "ddim"
  spacing: str = "trailing"
  prior_steps: int = 25
  prior_guidance_scale: float = 1.0
  prior_bound: float = 0.0
  draws: int = 2
  upsampler_steps: int = 15

  def prior(self, kind: type) -> Any:
    """A prior's sampler, of what is said here and it has fields for: one that says numbers in turn has no steps."""
    said = dict(
      num_steps=self.prior_steps,
      spacing=self.spacing,
      guidance_scale=self.prior_guidance_scale,
      threshold="static" if self.prior_bound else "none",
      bound=self.prior_bound or 1.0,
      draws=self.draws,
    )
    known = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in said.items() if name in known})

  @property
  def decoder(self) -> PixelSampler:
    return PixelSampler(
      self.num_steps,
      self.method,
      self.eta,
      spacing=self.spacing,
      guidance_scale=self.guidance_scale,
    )

  @property
  def upsampler(self) -> PixelSampler:
    return PixelSampler(self.upsampler_steps, self.method, spacing=self.spacing)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnCLIP:
  """The system, which learns nothing.

  Attributes:
    prior: a part.
    decoder: a part.
    first: enlarges what the decoder gives; a part.
    second: enlarges that; a part.
  """

  prior: SamplesImageEmbeddings
  decoder: UnCLIPDecoder
  first: UnCLIPUpsampler | None = None
  second: UnCLIPUpsampler | None = None

  Sampler = UnCLIPSampler
  takes_mask = False
  moves_images = True

  def __post_init__(self):
    if self.second is not None and self.first is None:
      raise ValueError("a second upsampler stands behind a first")
    size = self.decoder.image_size
    for name in ("first", "second"):
      if (upsampler := getattr(self, name)) is not None:
        if upsampler.low_size != size:
          raise ValueError(
            f"{name} enlarges images of {upsampler.low_size} pixels, and is given {size}"
          )
        size = upsampler.image_size

  @property
  def image_size(self) -> int:
    """Of its images."""
    return (self.second or self.first or self.decoder).image_size

  def inputs(self):
    return self.decoder.inputs()

  def init(self, rng):
    del rng
    return {"params": {}, "state": {}}

  def sample_inputs(self):
    return self.prior.sample_inputs()

  def empty_inputs(self):
    """What stands for no text."""
    wanted = self.sample_inputs()
    return {name: np.zeros(shape.shape, shape.dtype) for name, shape in wanted.items()}

  def sample_images(
    self, variables, inputs, seeds: Int[Array, " batch"], sampler: UnCLIPSampler
  ) -> Float[Array, "batch height width 3"]:
    """Of `text` and `text_mask`, by the prior; or of an `image`, without it: then the text may be empty.

    With `towards` another image, or with `from_text` and `from_text_mask` the difference of two texts, decides, and
    `share` `[B]`, 0 at the image, 1 at the other or along the difference alone, says how far.
    """
    text = {name: inputs[name] for name in ("text", "text_mask")}
    decoder = part(variables, "decoder")
    if "image" in inputs:
      z = self._moved(decoder, inputs, text)
    else:
      how = sampler.prior(self.prior.Sampler)
      z = self.prior.sample_image_embeddings(part(variables, "prior"), text, seeds, how)
    told = {**text, "image_embedding": z}
    image = self.decoder.sample_images(decoder, told, seeds, sampler.decoder)
    for name in ("first", "second"):
      if (upsampler := getattr(self, name)) is not None:
        low = {"low_resolution": image}
        image = upsampler.sample_images(part(variables, name), low, seeds, sampler.upsampler)
    return image

  def _moved(self, decoder, inputs, text) -> Embeddings:
    clip, of = self.decoder.clip, part(decoder, "clip")
    embed = lambda name: self.decoder.embed_image(decoder, inputs[name])
    z = embed("image")
    if "towards" in inputs:
      return slerp(z, embed("towards"), inputs["share"])
    if "from_text" in inputs:
      before = clip.embed_text(of, inputs["from_text"], inputs["from_text_mask"])
      change = unit(unit(clip.embed_text(of, **text)) - unit(before))
      return slerp(z, change, inputs["share"])
    return z


def slerp(a: Embeddings, b: Embeddings, share: Float[Array, " batch"]) -> Embeddings:
  """On the sphere from a to b's direction, `share` of the angle; as long as a."""
  length = jnp.linalg.norm(a, axis=-1, keepdims=True)
  a, b, share = unit(a), unit(b), share[:, None]
  angle = jnp.arccos(jnp.clip((a * b).sum(axis=-1, keepdims=True), -1, 1))
  sine = jnp.maximum(jnp.sin(angle), 1e-6)
  found = (jnp.sin((1 - share) * angle) * a + jnp.sin(share * angle) * b) / sine
  return length * unit(jnp.where(angle < 1e-4, a, found))
