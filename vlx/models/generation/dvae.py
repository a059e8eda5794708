"""The discrete VAE of DALL-E.

Ramesh et al., "Zero-Shot Text-to-Image Generation", 2021, §2.1 and appendix A. Here: the encoder
and decoder of the released code (openai/DALL-E, dall_e/encoder.py and decoder.py;
vlx.pretrained.dvae has its names), the relaxation by Gumbel-softmax with its published schedules,
and the evidence lower bound with the logit-Laplace likelihood.

The relaxed codes are those of training; `image_to_tokens` takes the most likely code, without
noise, as the paper's second stage does.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlx.core.system import Aux, Term, image_input
from vlx.models.generation.vqvae import codebook_usage
from vlx.models.layers import apply
from vlx.models.layers.convolution import double

MARGIN = 0.1  # appendix A.3, ε: pixels are modeled in (ε, 1 − ε)


def published_size() -> dict:
  """Fields of the released encoder and decoder."""
  return dict(image_size=256, width=256, num_codes=8192, code_dim=128)


def _conv(features: int, size: int, dtype: str, name: str) -> nn.Conv:
  init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")  # dall_e/utils.py
  return nn.Conv(features, (size, size), kernel_init=init, dtype=dtype, name=name)


class Block(nn.Module):
  """id(x) + gain · four convolutions of these sizes, a ReLU before each; three are a fourth as
  wide.
  """

  features: int
  sizes: tuple[int, int, int, int]
  gain: float
  dtype: str

  @nn.compact
  def __call__(
    self, x: Float[Array, "batch rows columns channels"]
  ) -> Float[Array, "batch rows columns features"]:
    y = x
    for i, size in enumerate(self.sizes):
      width = self.features if i == 3 else self.features // 4
      y = _conv(width, size, self.dtype, f"conv{i + 1}")(nn.relu(y))
    if x.shape[-1] != self.features:
      x = _conv(self.features, 1, self.dtype, "shortcut")(x)
    return x + self.gain * y


class Encoder(nn.Module):
  """Pixels in (ε, 1 − ε) → logits of each cell's code; every group but the first is at half the
  size.
  """

  num_groups: int
  blocks_per_group: int
  width: int
  num_codes: int
  dtype: str

  @nn.compact
  def __call__(
    self, x: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch rows columns codes"]:
    gain = (self.num_groups * self.blocks_per_group) ** -2
    x = _conv(self.width, 7, self.dtype, "input")(x)
    for g in range(self.num_groups):
      x = nn.max_pool(x, (2, 2), (2, 2)) if g else x
      for b in range(self.blocks_per_group):
        x = Block(self.width * 2**g, (3, 3, 3, 1), gain, self.dtype, name=f"group{g}_block{b}")(x)
    return _conv(self.num_codes, 1, "float32", "output")(nn.relu(x.astype(jnp.float32)))


class Decoder(nn.Module):
  """Codes, or weights of a mixture of them → μ and ln b of each pixel's colors; copies double
  the size.
  """

  num_groups: int
  blocks_per_group: int
  width: int
  num_codes: int
  code_dim: int
  dtype: str

  @nn.compact
  def __call__(
    self, codes: Int[Array, "batch rows columns"] | Float[Array, "batch rows columns codes"]
  ) -> Float[Array, "batch height width 6"]:
    # The released 1x1 convolution of one-hot codes: a lookup where the codes are hard.
    init = nn.initializers.normal(self.num_codes**-0.5)
    codebook = self.param("codebook", init, (self.num_codes, self.code_dim))
    x = codebook[codes] if codes.ndim == 3 else codes @ codebook
    x = x + self.param("codebook_bias", nn.initializers.zeros, (self.code_dim,))
    gain = (self.num_groups * self.blocks_per_group) ** -2
    for g in range(self.num_groups):
      x = double(x) if g else x
      features = self.width * 2 ** (self.num_groups - 1 - g)
      for b in range(self.blocks_per_group):
        x = Block(features, (1, 3, 3, 3), gain, self.dtype, name=f"group{g}_block{b}")(x)
    return _conv(6, 1, self.dtype, "output")(nn.relu(x)).astype(jnp.float32)


class DVAENetwork(nn.Module):
  """Both halves."""

  encoder: Encoder
  decoder: Decoder

  def encode(
    self, x: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch rows columns codes"]:
    return self.encoder(x)

  def decode(
    self, codes: Int[Array, "batch rows columns"] | Float[Array, "batch rows columns codes"]
  ) -> Float[Array, "batch height width 6"]:
    return self.decoder(codes)

  def __call__(
    self, x: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch height width 6"]:
    return self.decode(self.encode(x))


def cosine(step: jax.Array | int, start: float, end: float, steps: int) -> Float[Array, ""]:
  """From `start` to `end` over `steps` updates along half a cosine; `end` afterwards."""
  part = jnp.minimum(step / steps, 1.0)
  return end + (start - end) * 0.5 * (1 + jnp.cos(jnp.pi * part))


def map_pixels(image: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
  """[-1, 1] → (ε, 1 − ε): φ of appendix A.3."""
  return (1 - 2 * MARGIN) * (image + 1) / 2 + MARGIN


def unmap_pixels(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
  """The inverse of `map_pixels`; what lies outside is clipped."""
  return 2 * jnp.clip((x - MARGIN) / (1 - 2 * MARGIN), 0, 1) - 1


def logit_laplace(
  x: Float[Array, "*shape"], mu: Float[Array, "*shape"], log_b: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
  """ln f(x | μ, b), x in (0, 1): the density of σ(y) for y of a Laplace distribution (eq. 2)."""
  logit = jnp.log(x) - jnp.log1p(-x)
  return -jnp.abs(logit - mu) * jnp.exp(-log_b) - log_b - jnp.log(2 * x * (1 - x))


def kl_from_uniform(logits: Float[Array, "*cells codes"]) -> Float[Array, "*cells"]:
  """KL(softmax(logits) ‖ uniform), in nats."""
  log_q = jax.nn.log_softmax(logits)
  return jnp.sum(jnp.exp(log_q) * log_q, axis=-1) + jnp.log(logits.shape[-1])


@dataclasses.dataclass(frozen=True)
class DVAE:
  """The system; it tokenizes images. Batches hold `image`, in [-1, 1]."""

  image_size: int
  width: int
  num_codes: int
  code_dim: int
  num_groups: int = 4
  blocks_per_group: int = 2
  beta: float = 6.6  # appendix A.2: the KL term's weight, from 0
  beta_steps: int = 5_000
  temperature: float = 1 / 16  # from 1
  temperature_steps: int = 150_000
  # What is added to every b; the paper adds nothing. Where an image is one flat color, as drawings
  # are and photographs are not, b → 0 without it, and the likelihood and its gradients have no
  # bound.
  min_scale: float = 0.0
  dtype: str = "float32"

  def __post_init__(self):
    if self.image_size % 2 ** (self.num_groups - 1):
      raise ValueError(
        f"an image of {self.image_size} pixels cannot be halved {self.num_groups - 1} times"
      )
    if self.width % 4:
      raise ValueError(f"width {self.width} is no multiple of 4")

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of an image's codes."""
    return (self.image_size // 2 ** (self.num_groups - 1),) * 2

  @property
  def network(self) -> DVAENetwork:
    shared = dict(
      num_groups=self.num_groups,
      blocks_per_group=self.blocks_per_group,
      width=self.width,
      num_codes=self.num_codes,
      dtype=self.dtype,
    )
    return DVAENetwork(Encoder(**shared), Decoder(code_dim=self.code_dim, **shared))

  def inputs(self):
    return {"image": image_input(self.image_size)}

  def init(self, rng):
    return apply.init(self.network, rng, self.inputs(), "image")

  def _apply(self, variables, method, *inputs):
    return apply.infer(self.network, variables, *inputs, method=method)

  def loss(self, variables, batch, rng, *, step, train, frozen):
    """The negative lower bound per color of a pixel, with β on its KL term, at the temperature
    of `step`.
    """
    del train, frozen
    x = map_pixels(batch["image"])
    logits = self._apply(variables, "encode", x)
    tau = cosine(step, 1.0, self.temperature, self.temperature_steps)
    beta = cosine(step, 0.0, self.beta, self.beta_steps)
    weights = jax.nn.softmax((logits + jax.random.gumbel(rng, logits.shape)) / tau)
    mu, log_b = jnp.split(self._apply(variables, "decode", weights), 2, axis=-1)
    log_b = jnp.logaddexp(log_b, jnp.log(self.min_scale))
    nll = -logit_laplace(x, mu, log_b).sum(axis=(1, 2, 3)).mean()
    kl = kl_from_uniform(logits).sum(axis=(1, 2)).mean()
    count, colors = len(x), x[0].size
    bound = Term(count * (nll + beta * kl) / colors, count)
    metrics = {
      "nll": nll,
      "kl": kl,
      "beta": beta,
      "temperature": tau,
      **codebook_usage(logits.argmax(axis=-1), self.num_codes),
    }
    return {"negative_bound": bound}, Aux(metrics=metrics, state=variables["state"])

  def accumulates(self):
    return ""

  def image_to_tokens(
    self, variables, image: Float[Array, "batch height width 3"]
  ) -> Int[Array, "batch rows columns"]:
    """Each cell's most likely code."""
    return self._apply(variables, "encode", map_pixels(image)).argmax(axis=-1)

  def tokens_to_image(
    self, variables, tokens: Int[Array, "batch rows columns"]
  ) -> Float[Array, "batch height width 3"]:
    """φ⁻¹(σ(μ)); ln b is not used (appendix A.3)."""
    mu = self._apply(variables, "decode", tokens)[..., :3]
    return unmap_pixels(jax.nn.sigmoid(mu))

  def reconstruct(
    self, variables, image: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch height width 3"]:
    return self.tokens_to_image(variables, self.image_to_tokens(variables, image))
