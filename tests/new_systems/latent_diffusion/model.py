"""Latent diffusion (Rombach et al., 2022) above a frozen autoencoder and a frozen text encoder:
a toy.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlx.core.capabilities import Autoencodes, EncodesText
from vlx.core.system import Aux, Term, image_input, own, part, text_inputs
from vlx.models.layers import apply
from vlx.models.layers.attention import MultiHeadAttention
from vlx.ops.masks import KeyPadding


class AutoencoderNetwork(nn.Module):
  width: int

  def setup(self):
    self.down = [nn.Conv(self.width, (4, 4), (2, 2)), nn.Conv(2, (4, 4), (2, 2))]
    self.up = [nn.ConvTranspose(self.width, (4, 4), (2, 2)), nn.ConvTranspose(3, (4, 4), (2, 2))]

  def encode(self, image):
    return self.down[1](nn.relu(self.down[0](image)))

  def decode(self, latents):
    return self.up[1](nn.relu(self.up[0](latents)))

  def __call__(self, image):
    return self.decode(self.encode(image))


@dataclasses.dataclass(frozen=True)
class Autoencoder:
  """16x16 images as 4x4 latents."""

  width: int = 8

  def inputs(self):
    return {"image": image_input(16)}

  def init(self, rng):
    return apply.init(AutoencoderNetwork(self.width), rng, self.inputs(), "image")

  def loss(self, variables, batch, rng, *, step, train, frozen):
    squares = (self.reconstruct(variables, batch["image"]) - batch["image"]) ** 2
    return {"squares": Term(squares.sum(), squares.size)}, Aux({}, variables["state"])

  def accumulates(self):
    return ""

  def encode_latents(self, v, image, rng):
    return apply.infer(AutoencoderNetwork(self.width), v, image, method="encode")

  def decode_latents(self, v, latents):
    return apply.infer(AutoencoderNetwork(self.width), v, latents, method="decode")

  def reconstruct(self, v, image):
    return apply.infer(AutoencoderNetwork(self.width), v, image)


class Denoiser(nn.Module):
  """Noisy latents, their noise level and a text → the noise."""

  width: int

  @nn.compact
  def __call__(self, latents, level, text, text_mask, *, train: bool = False):
    x = (
      nn.Conv(self.width, (3, 3), name="in")(latents)
      + nn.Dense(self.width, name="level")(level[:, None])[:, None, None]
    )
    flat = x.reshape(len(x), -1, self.width)
    x = x + MultiHeadAttention(2, name="cross")(flat, KeyPadding(text_mask), text).reshape(x.shape)
    x = nn.Dropout(0.1, deterministic=not train)(
      nn.silu(nn.Conv(self.width, (3, 3), name="hidden")(nn.silu(x)))
    )
    return nn.Conv(latents.shape[-1], (3, 3), name="out")(x)


@dataclasses.dataclass(frozen=True)
class LatentDiffusion:
  """ε-prediction with α² = cos²(πt/2); `state` has the scale that makes latents of variance 1
  (§4.3.2, appendix G).
  """

  autoencoder: Autoencodes
  text_encoder: EncodesText
  text_dim: int
  text_length: int = 12
  width: int = 16

  @dataclasses.dataclass(frozen=True)
  class Sampler:
    num_steps: int = 4
    guidance_scale: float = 1.0

  def inputs(self):
    return {"image": image_input(16), **text_inputs(self.text_length)}

  def init(self, rng):
    shape = jax.ShapeDtypeStruct
    inputs = {
      "latents": shape((4, 4, 2), jnp.float32),
      "level": shape((), jnp.float32),
      "text": shape((self.text_length, self.text_dim), jnp.float32),
      "mask": shape((self.text_length,), jnp.bool_),
    }
    variables = apply.init(Denoiser(self.width), rng, inputs, "latents", "level", "text", "mask")
    return {**variables, "state": {**variables["state"], "latent": {"scale": jnp.ones(())}}}

  def prepare(self, variables, batches, rng):
    latents = self.autoencoder.encode_latents(
      part(variables, "autoencoder"), batches[0]["image"], rng
    )
    state = {**variables["state"], "latent": {"scale": 1 / latents.std()}}
    return {**variables, "state": state}

  def _noise(self, variables, latents, t, text, text_mask, **how):
    mine = own(variables, "autoencoder", "text_encoder")
    mine = {**mine, "state": {}}
    if how:
      return apply.forward(Denoiser(self.width), mine, latents, t, text, text_mask, **how)[0]
    return apply.infer(Denoiser(self.width), mine, latents, t, text, text_mask)

  def loss(self, variables, batch, rng, *, step, train, frozen):
    keys = jax.random.split(rng, 3)
    text = self.text_encoder.encode_text(
      part(variables, "text_encoder"), batch["text"], batch["text_mask"]
    )
    latents = self.autoencoder.encode_latents(
      part(variables, "autoencoder"), batch["image"], keys[0]
    )
    latents = latents * variables["state"]["latent"]["scale"]
    t = jax.random.uniform(keys[1], (len(latents),))
    noise = jax.random.normal(keys[2], latents.shape)
    alpha, sigma = (f(jnp.pi * t / 2)[:, None, None, None] for f in (jnp.cos, jnp.sin))
    found = self._noise(
      variables,
      alpha * latents + sigma * noise,
      t,
      text,
      batch["text_mask"],
      rng=keys[0],
      train=train,
      frozen=frozen,
    )
    squares = (found - noise) ** 2
    return {"noise": Term(squares.sum(), squares.size)}, Aux({}, variables["state"])

  def accumulates(self):
    return ""

  def sample_inputs(self):
    return text_inputs(self.text_length)

  def sample_images(self, v, inputs, seeds, sampler):
    text = self.text_encoder.encode_text(
      part(v, "text_encoder"), inputs["text"], inputs["text_mask"]
    )
    x = jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), (4, 4, 2)))(seeds)
    times = jnp.linspace(0.98, 0, sampler.num_steps + 1)
    for t, s in zip(times[:-1], times[1:]):
      level = jnp.full(len(x), t)
      noise = self._noise(v, x, level, text, inputs["text_mask"])
      without = self._noise(v, x, level, jnp.zeros_like(text), inputs["text_mask"])
      noise = without + sampler.guidance_scale * (noise - without)
      clean = (x - jnp.sin(jnp.pi * t / 2) * noise) / jnp.cos(jnp.pi * t / 2)
      x = jnp.cos(jnp.pi * s / 2) * clean + jnp.sin(jnp.pi * s / 2) * noise
    return self.autoencoder.decode_latents(
      part(v, "autoencoder"), x / v["state"]["latent"]["scale"]
    )

  def reconstruct(self, v, image):
    return self.autoencoder.reconstruct(part(v, "autoencoder"), image)
