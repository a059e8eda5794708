"""unCLIP's upsamplers: images of more pixels for one of fewer.

Ramesh et al., "Hierarchical Text-Conditional Image Generation with CLIP Latents" (DALL-E 2), 2022, §2.1 and appendix C:
diffusion of ADM's network without attention, on whose channels the small image stands, bicubically enlarged; it learns
of crops and works on whole images. What it learns to enlarge is made worse (`vlx.models.generation.degradations`), that it
may mend what a decoder samples. In Karlo another network, tuned for that, does the last step.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlx.core.system import image_input
from vlx.models.generation import degradations
from vlx.models.generation.ddpm import DiffusionModel, PixelSampler
from vlx.models.layers.unet import Images, UNet


class WithLastStep(nn.Module):
  """A network, and another one for step 0."""

  first: UNet
  last: UNet

  def __call__(
    self, x: Images, t: Float[Array, " batch"] | Int[Array, " batch"], *, low_resolution: Images
  ) -> Images:
    """All rows are at the same step."""
    run = lambda name: lambda network: getattr(network, name)(x, t, low_resolution=low_resolution)
    if self.is_initializing():
      return run("first")(self) + run("last")(self)
    return nn.cond(t[0] == 0, run("last"), run("first"), self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnCLIPUpsampler(DiffusionModel):
  """The system. Batches hold `image`; it samples of `low_resolution`.

  Attributes:
    low_size: of the images that it enlarges to `image_size`.
    crop_size: of the squares of images that it learns of, cut anew each time; 0: whole ones.
    degradation: how what it learns of is made worse: none, blur or bsr.
    separate_last: whether another network does the last step; it is not trained here.
  """

  low_size: int
  crop_size: int = 0
  degradation: str = "blur"
  separate_last: bool = False
  condition_dropout: float = 0.0

  Sampler = PixelSampler

  def __post_init__(self):
    super().__post_init__()
    if self.image_size % self.low_size:
      raise ValueError(f"image_size {self.image_size} does not divide by low_size {self.low_size}")
    if self.degradation not in degradations.KINDS:
      raise ValueError(
        f"degradation is one of {', '.join(degradations.KINDS)}, not {self.degradation!r}"
      )

  @property
  def x0_shape(self) -> tuple[int, int, int]:
    return (self.image_size, self.image_size, 3)

  @property
  def network(self) -> nn.Module:
    return WithLastStep(self.unet, self.unet.clone()) if self.separate_last else self.unet

  def inputs(self):
    return {"image": image_input(self.image_size)}

  def _condition_inputs(self):
    return {"low_resolution": image_input(self.low_size)}

  def loss(self, variables, batch, rng, *, step, train, frozen):
    """As `DiffusionModel`'s, in training of crops."""
    if train and self.crop_size:
      rng, where = jax.random.split(rng)
      batch = {"image": crops(where, batch["image"], self.crop_size)}
    return super().loss(variables, batch, rng, step=step, train=train, frozen=frozen)

  def _drawn(self, rng, rows):
    """What an image is made worse by."""
    del rows
    return rng

  def _condition(self, variables, inputs, given):
    del variables
    small = inputs.get("low_resolution")
    if small is None:
      image, factor = inputs["image"], self.image_size // self.low_size
      kind = "none" if given is True else self.degradation
      small = degradations.degraded(kind, given, image, factor)
    else:
      factor = self.image_size // small.shape[1]
    size = (len(small), *(factor * side for side in small.shape[1:3]), 3)
    return {"low_resolution": jax.image.resize(small, size, "cubic")}

  def _encode(self, variables, image, rng):
    del variables, rng
    return image

  def _decode(self, variables, x0):
    del variables
    return x0

  def reconstruct(
    self, variables, image: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch height width 3"]:
    """An image made small and enlarged again, in eight steps of DDIM."""
    small = degradations.shrunk(image, self.image_size // self.low_size)
    seeds = jnp.zeros(len(image), jnp.int32)
    return self.sample_images(variables, {"low_resolution": small}, seeds, PixelSampler(8))


def crops(rng: jax.Array, image: Images, side: int) -> Float[Array, "batch side side channels"]:
  """A square of each image, anywhere in it."""
  most = jnp.array(image.shape[1:3]) - side + 1
  corners = jax.random.randint(rng, (len(image), 2), 0, most)
  cut = lambda x, corner: jax.lax.dynamic_slice(x, (*corner, 0), (side, side, x.shape[-1]))
  return jax.vmap(cut)(image, corners)
