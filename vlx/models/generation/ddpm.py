"""Denoising diffusion in pixels.

Ho et al., "Denoising Diffusion Probabilistic Models", 2020; learned variances of Improved DDPM (Nichol & Dhariwal,
2021); the networks of ADM (Dhariwal & Nichol, 2021); conditions that are left out at times, for guidance (Ho &
Salimans, 2022). Unconditional, of a class, or of a text whose encoder is a part, frozen or trained along
(`vlx.models.layers.unet` has the network, `vlx.inference` the process and its samplers).

`DiffusionModel` is what pixels and latents (`vlx.models.generation.latent_diffusion`) share.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from jaxtyping import Array, Float, Int

from vlx.core import system as systems
from vlx.core.capabilities import EncodesText
from vlx.core.errors import UserError
from vlx.core.system import Aux, image_input, own, part, text_inputs
from vlx.inference import diffusion, guidance, samplers
from vlx.inference.diffusion import Images, Process
from vlx.inference.samplers import Sampler
from vlx.losses import diffusion as losses
from vlx.models.layers import apply
from vlx.models.layers.unet import UNet

FRAMES = 10  # of a film, at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionModel:
  """The loss and the samplers. Batches hold `image`; `text` and `text_mask`, or `label`, where there are such.

  A subclass says what x₀ is: `x0_shape`, `_encode`, `_decode`; and what the network is conditioned on, if it is something
  else: `network`, `_condition_inputs`, `_condition`, `_drawn`.

  Attributes:
    unet: the network.
    image_size: of the images.
    process: the diffusion process, and what the network says.
    num_classes: that images are of; 0: they are of none.
    text_encoder: a part that reads texts; None: there are no texts.
    text_length: tokens of a text.
    empty_text: ids of a text that stands for none; then all tokens of a text are attended to, padding, which is its
      last, too, as in Stable Diffusion. (): where there is no text nothing is attended to, and padding never is.
    condition_dropout: how often training leaves the condition out.
    weighting: of the loss's steps: simple, vlb or min_snr (`vlx.losses.diffusion.weights`).
    gamma: of min_snr.
    vlb_weight: of the bound, by which variances are learned (Improved DDPM, eq. 16).
  """

  unet: UNet
  image_size: int
  process: Process = Process()
  num_classes: int = 0
  text_encoder: EncodesText | None = None
  text_length: int = 77
  empty_text: tuple[int, ...] = ()
  condition_dropout: float = 0.1
  weighting: str = "simple"
  gamma: float = 5.0
  vlb_weight: float = 0.001

  Sampler = Sampler
  takes_mask = True

  def __post_init__(self):
    if self.weighting not in losses.WEIGHTINGS:
      raise ValueError(
        f"weighting is one of {', '.join(losses.WEIGHTINGS)}, not {self.weighting!r}"
      )
    if self.num_classes and self.text_encoder is not None:
      raise ValueError("images are of a class or of a text, not of both")
    if (self.text_encoder is not None) != bool(self.unet.transformer_depth):
      raise ValueError(
        "a text_encoder goes with a unet of transformer_depth above 0, and none with 0"
      )
    rows = self.num_classes + bool(self.num_classes and self.condition_dropout)
    if self.unet.num_classes != rows:
      raise ValueError(
        f"unet.num_classes must be {rows}: one for each class, and one for none where condition_dropout is above 0"
      )
    if self.empty_text and len(self.empty_text) != self.text_length:
      raise ValueError(
        f"empty_text has {len(self.empty_text)} ids, and text_length is {self.text_length}"
      )
    height, width, channels = self.x0_shape
    halved = 2 ** (len(self.unet.multipliers) - 1)
    if height % halved or width % halved:
      raise ValueError(
        f"unet has {len(self.unet.multipliers)} levels: {height}x{width}, the size of what is noised, does not divide by {halved}"
      )
    channels *= 1 + self.process.learned_variance
    if self.unet.channels != channels:
      raise ValueError(
        f"unet.channels must be {channels}, what the network says, not {self.unet.channels}"
      )

  @property
  def network(self) -> nn.Module:
    """(x, t, by name what it is conditioned on) → a prediction."""
    return self.unet

  @property
  def x0_shape(self) -> tuple[int, int, int]:
    """Of what is noised."""
    raise NotImplementedError

  def _encode(self, variables, image: Images, rng: jax.Array) -> Images:
    """x₀ of an image."""
    raise NotImplementedError

  def _decode(self, variables, x0: Images) -> Images:
    """The image of x₀."""
    raise NotImplementedError

  def _condition_inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    if self.text_encoder is not None:
      return text_inputs(self.text_length)
    return {"label": jax.ShapeDtypeStruct((), jnp.int32)} if self.num_classes else {}

  def inputs(self):
    return {"image": image_input(self.image_size), **self._condition_inputs()}

  def sample_inputs(self):
    return self._condition_inputs()

  def init(self, rng):
    given = {
      "x": jnp.zeros((1, *self.x0_shape)),
      "t": jnp.zeros(1),
      **jax.eval_shape(self._condition_example, rng),
    }
    one = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in given.items()}
    names = [name for name in one if name not in ("x", "t")]
    method = lambda network, x, t, *rest: network(x, t, **dict(zip(names, rest)))
    return apply.init(self.network, rng, one, "x", "t", *names, method=method)

  def _condition_example(self, rng):
    """What the network is conditioned on in a batch of one."""
    below = {name: systems.init(inner, rng) for name, inner in systems.parts(self).items()}
    variables = {kind: {name: v[kind] for name, v in below.items()} for kind in ("params", "state")}
    inputs = {n: jnp.zeros((1, *s.shape), s.dtype) for n, s in self._condition_inputs().items()}
    return self._condition(variables, inputs, True)

  def _own(self, variables):
    """The network's."""
    return own(variables, *systems.parts(self))

  def _condition(self, variables, inputs, given: Any) -> dict[str, Any]:
    """What the network is conditioned on in rows where it is `given`, and on nothing elsewhere."""
    if self.num_classes:
      return {"label": jnp.where(given, inputs["label"], self.num_classes)}
    if self.text_encoder is None:
      return {}
    text, mask = inputs["text"], inputs["text_mask"]
    rows = jnp.broadcast_to(given, (len(text),))[:, None]
    if self.empty_text:
      text = jnp.where(mask, text, self.empty_text[-1])
      text = jnp.where(rows, text, jnp.array(self.empty_text))
      mask = jnp.ones_like(mask)
    encoded = self.text_encoder.encode_text(part(variables, "text_encoder"), text, mask)
    return {"context": encoded, **({} if self.empty_text else {"context_mask": mask & rows})}

  def _drawn(self, rng: jax.Array, rows: int) -> Any:
    """Where training gives the condition."""
    return jax.random.bernoulli(rng, 1 - self.condition_dropout, (rows,))

  def loss(self, variables, batch, rng, *, step, train, frozen):
    """The weighted square of the error of a step of each row, and the bound's part of learned variances."""
    del step
    keys = jax.random.split(rng, 5)
    x0 = jax.lax.stop_gradient(self._encode(variables, batch["image"], keys[0]))
    t = jax.random.randint(keys[1], (len(x0),), 0, self.process.timesteps)
    eps = jax.random.normal(keys[2], x0.shape)
    x = diffusion.add_noise(x0, eps, self.process.level(t))
    given = self._drawn(keys[3], len(x0)) if train else True
    output, state = apply.forward(
      self.network,
      self._own(variables),
      x,
      t,
      **self._condition(variables, batch, given),
      rng=keys[4],
      train=train,
      frozen=frozen,
    )
    weights = losses.weights(self.process, self.weighting, self.gamma)
    terms = {"error": losses.squared_error(self.process, output, x0, eps, t, weights)}
    if self.process.learned_variance:
      terms["bound"] = losses.hybrid_term(self.process, output, x0, x, t, self.vlb_weight)
    return terms, Aux({}, {**variables["state"], **state})

  def accumulates(self):
    return ""

  def sample_images(
    self, variables, inputs, seeds: Int[Array, " batch"], sampler: Sampler
  ) -> Float[Array, "batch height width 3"]:
    """Samples images, of `text` and `text_mask` or `label`; from `image`, where the sampler's strength is below 1 or a
    `mask` `[B, H, W, 1]` says by 1 where something new is wanted.
    """
    x0, _ = self._sample(variables, inputs, seeds, sampler)
    return _kept(inputs, self._decode(variables, x0))

  def empty_inputs(self):
    """What stands for no text."""
    if "text" not in self.sample_inputs():
      return {}
    ids = self.empty_text or (0,) * self.text_length
    return {
      "text": np.array(ids, np.int32),
      "text_mask": np.full(self.text_length, bool(self.empty_text)),
    }

  def sample_film(
    self, variables, inputs, seeds: Int[Array, " batch"], sampler: Sampler
  ) -> Float[Array, "batch frames height width 3"]:
    """What the network takes the images for, at up to ten steps, the last the last; at strength 0 there is one frame."""
    _, film = self._sample(variables, inputs, seeds, sampler, film=True)
    chosen = np.linspace(0, len(film) - 1, min(len(film), FRAMES)).round().astype(int)
    frames = jax.lax.map(functools.partial(self._decode, variables), film[chosen])
    return rearrange(_kept(inputs, frames), "f b h w c -> b f h w c")

  def _sample(self, variables, inputs, seeds, sampler: Sampler, film: bool = False):
    """(x₀, the film)."""
    mine = self._own(variables)
    network = lambda x, t, condition: apply.infer(self.network, mine, x, t, **condition)
    condition = self._condition(variables, inputs, True)
    if sampler.guidance_scale != 1 and not condition:
      raise UserError("guidance_scale is of a class or a text, and this model has neither")
    nothing = (
      self._condition(variables, inputs, False) if sampler.guidance_scale != 1 else condition
    )
    guided = guidance.classifier_free(
      network, self.process, condition, nothing, sampler.guidance_scale, sampler.guidance_rescale
    )

    def encode(image, seed):
      # Each row by its seed, whatever the batch; the sampler's noise has lower numbers.
      rng = jax.random.fold_in(jax.random.key(seed), self.process.timesteps + 1)
      return self._encode(variables, image[None], rng)[0]

    start = jax.vmap(encode)(inputs["image"], seeds) if "image" in inputs else None
    mask = inputs.get("mask")
    if mask is not None:  # a position is new where any of its pixels is
      rows, columns, _ = self.x0_shape
      mask = reduce(mask, "b (r y) (c x) one -> b r c one", "max", r=rows, c=columns)
    return samplers.sample(
      lambda x, t: network(x, t, condition),
      guided,
      self.process,
      sampler,
      seeds,
      self.x0_shape,
      start=start,
      mask=mask,
      film=film,
    )


def _kept(inputs, made: Float[Array, "*frames batch height width 3"]):
  """What was made, with the given image where the mask, if there is one, is 0."""
  if "mask" not in inputs:
    return made
  return jnp.where(inputs["mask"] > 0.5, made, inputs["image"])


@dataclasses.dataclass(frozen=True)
class PixelSampler(Sampler):
  """Images on the way are kept in [-1, 1], as the paper's code does."""

  threshold: str = "static"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPM(DiffusionModel):
  """The system in pixels, x₀ being the image."""

  Sampler = PixelSampler

  @property
  def x0_shape(self) -> tuple[int, int, int]:
    return (self.image_size, self.image_size, 3)

  def _encode(self, variables, image, rng):
    del variables, rng
    return image

  def _decode(self, variables, x0):
    del variables
    return x0
