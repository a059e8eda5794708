"""Latent diffusion, and Stable Diffusion 1.x.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022: the diffusion of
`vlx.models.generation.ddpm` in the latents of an autoencoder, a part that rests, with a text encoder, a part that
rests (Stable Diffusion's is CLIP's) or learns along (the paper's text model). Latents are scaled to a deviation of 1 by
that of the first batch, or by a constant (§4.3.2, appendix G).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlx.core import system as systems
from vlx.core.capabilities import Autoencodes
from vlx.core.system import part
from vlx.models.generation.ddpm import DiffusionModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentDiffusion(DiffusionModel):
  """The system, x₀ being scaled latents.

  Attributes:
    autoencoder: a part.
    latent_scale: that latents are multiplied by; 0: 1 over the deviation of the first batch's.
  """

  autoencoder: Autoencodes
  latent_scale: float = 0.0

  @functools.cached_property
  def x0_shape(self) -> tuple[int, int, int]:
    def encode(rng):
      image = jnp.zeros((1, self.image_size, self.image_size, 3))
      return self.autoencoder.encode_latents(systems.init(self.autoencoder, rng), image, rng)

    _, *shape = jax.eval_shape(encode, jax.random.key(0)).shape
    return tuple(shape)

  def init(self, rng):
    variables = super().init(rng)
    if self.latent_scale:
      return variables
    return {**variables, "state": {**variables["state"], "latents": {"scale": jnp.ones(())}}}

  def prepare(self, variables, batches, rng):
    """Measures the scale, where it is no constant."""
    if self.latent_scale:
      return variables
    image = batches[0]["image"]
    latents = self.autoencoder.encode_latents(part(variables, "autoencoder"), image, rng)
    state = {**variables["state"], "latents": {"scale": 1 / latents.std()}}
    return {**variables, "state": state}

  def _own(self, variables):
    mine = super()._own(variables)
    return {**mine, "state": {k: v for k, v in mine["state"].items() if k != "latents"}}

  def _scale(self, variables):
    return self.latent_scale or variables["state"]["latents"]["scale"]

  def _encode(self, variables, image, rng):
    latents = self.autoencoder.encode_latents(part(variables, "autoencoder"), image, rng)
    return latents * self._scale(variables)

  def _decode(self, variables, x0):
    latents = x0 / self._scale(variables)
    return self.autoencoder.decode_latents(part(variables, "autoencoder"), latents)

  def reconstruct(
    self, variables, image: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch height width 3"]:
    """The autoencoder's reconstruction: no sample can be expected to be better."""
    return self.autoencoder.reconstruct(part(variables, "autoencoder"), image)
