"""The autoencoders of latent diffusion.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022, §3.1 and appendix G; the networks
and losses as in the released code (CompVis/latent-diffusion), which has them of Esser et al., "Taming Transformers",
2021. `KLAutoencoder` draws its latents from a Gaussian that is held near the standard one; `VQAutoencoder` takes the
nearest of learned codes in its decoder: its latents are those before.

The image is to be near in its colors (L1) and to the eye (LPIPS, a part), and, from some step on, to fool a
discriminator of patches (Isola et al., 2017), which is the second player: the weight of that makes its gradient as
long as the other's at the decoder's last layer. Each term stands alone: without a `perceptual` part and with
`adversarial_weight` 0 there is L1 alone, and one player.

As in the released code, the generator's turn comes first. The scale s of its likelihood is 0 there, for it is not among
what the optimizer moves; with `learned_scale` it learns, as the formula says.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlx.core.capabilities import ComparesImages
from vlx.core.system import Aux, Term, image_input, own, part
from vlx.models.generation.vqvae import codebook_usage, init_codebook, quantize
from vlx.models.layers import apply
from vlx.models.layers.unet import (
  Changed,
  Downsample,
  Images,
  ResidualBlock,
  SelfAttention,
  Upsample,
  conv3x3,
  uniform,
)
from vlx.ops.nearest_code import nearest_code

Latents = Float[Array, "batch rows columns dim"]

EPSILON = 1e-6  # of the norms
LARGEST_WEIGHT = 1e4  # of the adversarial term


class _Half(nn.Module):
  """What both halves have.

  Attributes:
    width: of the first level, the largest.
    multipliers: of the width, a level's each.
    num_blocks: residual blocks of a level of the encoder; the decoder has one more.
    attention_at: factors of size at which there is attention, besides the middle.
    groups: of the norms.
    dtype: of the computation.
  """

  width: int
  multipliers: tuple[int, ...]
  num_blocks: int
  attention_at: tuple[int, ...]
  groups: int
  dtype: str

  def level(self, x: Images, i: int, count: int) -> Changed:
    for j in range(count):
      x = self.block(self.width * self.multipliers[i], f"level{i}_block{j}")(x, None)
      if 2**i in self.attention_at:
        x = self.attention(f"level{i}_attention{j}")(x)
    return x

  def middle(self, x: Images) -> Changed:
    features = self.width * self.multipliers[-1]
    x = self.block(features, "middle_block0")(x, None)
    x = self.attention("middle_attention")(x)
    return self.block(features, "middle_block1")(x, None)

  def out(self, x: Images) -> Images:
    return nn.silu(nn.GroupNorm(self.groups, epsilon=EPSILON, dtype=self.dtype, name="out_norm")(x))

  def block(self, features: int, name: str) -> ResidualBlock:
    return ResidualBlock(features, self.groups, EPSILON, dtype=self.dtype, name=name)

  def attention(self, name: str) -> SelfAttention:
    return SelfAttention(1, self.groups, EPSILON, self.dtype, name=name)


class Encoder(_Half):
  """Image → channels at each position; every level but the last halves the sides."""

  channels: int = 0

  @nn.compact
  def __call__(self, x: Images) -> Float[Array, "batch rows columns out"]:
    x = conv3x3(self.width, self.dtype, "in")(x.astype(self.dtype))
    for i, factor in enumerate(self.multipliers):
      x = self.level(x, i, self.num_blocks)
      if i + 1 < len(self.multipliers):
        x = Downsample(self.width * factor, False, self.dtype, name=f"level{i}_resample")(x)
    return conv3x3(self.channels, self.dtype, "out")(self.out(self.middle(x))).astype(jnp.float32)


class Decoder(_Half):
  """The encoder mirrored, but for the last layer."""

  @nn.compact
  def __call__(self, x: Latents) -> Float[Array, "batch height width features"]:
    x = conv3x3(self.width * self.multipliers[-1], self.dtype, "in")(x.astype(self.dtype))
    x = self.middle(x)
    for i in reversed(range(len(self.multipliers))):
      x = self.level(x, i, self.num_blocks + 1)
      if i:
        x = Upsample(self.width * self.multipliers[i], self.dtype, name=f"level{i}_resample")(x)
    return self.out(x)


class Discriminator(nn.Module):
  """Image → a logit of each patch, 70x70 with three layers (pix2pix; batch norm, LeakyReLU 0.2)."""

  width: int
  num_layers: int
  dtype: str

  @nn.compact
  def __call__(self, x: Images, *, train: bool = False) -> Float[Array, "batch rows columns 1"]:
    normal = nn.initializers.normal(0.02)
    conv = functools.partial(
      nn.Conv, kernel_size=(4, 4), padding=1, kernel_init=normal, dtype=self.dtype
    )
    x = nn.leaky_relu(conv(self.width, strides=2, name="conv0")(x.astype(self.dtype)), 0.2)
    for i in range(1, self.num_layers + 1):
      stride = 2 if i < self.num_layers else 1
      x = conv(self.width * min(2**i, 8), strides=stride, use_bias=False, name=f"conv{i}")(x)
      scale = lambda key, shape, dtype=jnp.float32: 1 + 0.02 * jax.random.normal(key, shape, dtype)
      norm = nn.BatchNorm(
        not train, momentum=0.9, scale_init=scale, dtype=self.dtype, name=f"norm{i}"
      )
      x = nn.leaky_relu(norm(x), 0.2)
    return conv(1, name="out")(x).astype(jnp.float32)


class AutoencoderNetwork(nn.Module):
  """Both halves, the 1x1 layers between them, and what a loss has of its own."""

  encoder: Encoder
  decoder: Decoder
  latent_channels: int
  inner_channels: int
  num_codes: int  # 0: the latents are Gaussian
  learned_scale: bool
  discriminator: Discriminator | None
  dtype: str

  def setup(self):
    dense = functools.partial(nn.Dense, kernel_init=uniform)
    self.to_latents = dense(self.latent_channels * (1 if self.num_codes else 2))
    self.from_latents = dense(self.inner_channels)
    self.out = nn.Conv(3, (3, 3), padding=1, kernel_init=uniform, dtype=self.dtype)
    if self.num_codes:
      self.codebook = self.param("codebook", init_codebook, (self.num_codes, self.latent_channels))
    if self.learned_scale:
      self.log_scale = self.param("log_scale", nn.initializers.zeros, ())  # s

  def encode(self, image: Images) -> Float[Array, "batch rows columns out"]:
    """Latents, or the mean and the log-variance of them."""
    return self.to_latents(self.encoder(image))

  def features(self, latents: Latents) -> Float[Array, "batch height width features"]:
    """All of the decoder but its last layer."""
    return self.decoder(self.from_latents(latents))

  def last(self, features: Images) -> Float[Array, "batch height width 3"]:
    return self.out(features).astype(jnp.float32)

  def decode(self, latents: Latents) -> Float[Array, "batch height width 3"]:
    return self.last(self.features(latents))

  def judge(self, image: Images, *, train: bool = False) -> Float[Array, "batch rows columns 1"]:
    assert self.discriminator is not None
    return self.discriminator(image, train=train)

  def __call__(self, image: Images) -> Float[Array, "batch height width 3"]:
    if self.discriminator is not None:
      self.judge(image)
    return self.decode(self.encode(image)[..., : self.latent_channels])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Autoencoder:
  """What both kinds share. Batches hold `image`, in [-1, 1].

  Attributes:
    image_size: of the images that it learns of; others work.
    latent_channels: of the latents.
    inner_channels: of what the encoder gives for them, and the decoder takes; 0: as many.
    perceptual: how different two images look; a part, frozen.
    width: see `_Half`, as the next three.
    multipliers: the sides are halved once less than there are levels.
    num_blocks: see there.
    attention_at: see there.
    groups: of the norms.
    perceptual_weight: of LPIPS beside L1.
    adversarial_weight: beside the adaptive one; 0: there is no discriminator.
    adversarial_from: the first step of both players' adversarial terms.
    discriminator_width: of its first layer.
    discriminator_layers: that halve the sides.
    dtype: of the computation.
  """

  image_size: int
  latent_channels: int
  inner_channels: int = 0
  perceptual: ComparesImages | None = None
  width: int = 128
  multipliers: tuple[int, ...] = (1, 2, 4, 4)
  num_blocks: int = 2
  attention_at: tuple[int, ...] = ()
  groups: int = 32
  perceptual_weight: float = 1.0
  adversarial_weight: float = 0.0
  adversarial_from: int = 50_001
  discriminator_width: int = 64
  discriminator_layers: int = 3
  dtype: str = "float32"

  num_codes = 0
  learned_scale = False

  def __post_init__(self):
    if self.image_size % self.factor:
      raise ValueError(f"an image of {self.image_size} pixels does not divide by {self.factor}")

  @property
  def factor(self) -> int:
    """How many pixels of a side a latent stands for."""
    return 2 ** (len(self.multipliers) - 1)

  @property
  def players(self) -> dict[str, str]:
    """Name → its parameters."""
    if not self.adversarial_weight:
      return {}
    return {"autoencoder": r"(?!discriminator/).*", "discriminator": r"discriminator/.*"}

  @property
  def network(self) -> AutoencoderNetwork:
    half = dict(
      width=self.width,
      multipliers=self.multipliers,
      num_blocks=self.num_blocks,
      attention_at=self.attention_at,
      groups=self.groups,
      dtype=self.dtype,
    )
    inner = self.inner_channels or self.latent_channels
    judge = Discriminator(self.discriminator_width, self.discriminator_layers, self.dtype)
    return AutoencoderNetwork(
      Encoder(channels=inner * (1 if self.num_codes else 2), **half),
      Decoder(**half),
      self.latent_channels,
      inner,
      self.num_codes,
      self.learned_scale,
      judge if self.adversarial_weight else None,
      self.dtype,
    )

  def inputs(self):
    return {"image": image_input(self.image_size)}

  def init(self, rng):
    return apply.init(self.network, rng, self.inputs(), "image")

  def accumulates(self):
    return "the adversarial term's weight is of the part" if self.adversarial_weight else ""

  def _own(self, variables):
    return own(variables, "perceptual")

  def _apply(self, variables, method, *inputs):
    return apply.infer(self.network, self._own(variables), *inputs, method=method)

  def _judge(self, variables, image, *, rng, train, frozen):
    """(logits, the new state)."""
    network, state = self.network, variables["state"]
    logits, new = apply.forward(
      network, self._own(variables), image, rng=rng, train=train, frozen=frozen, method="judge"
    )
    return logits, {**state, **new}

  def _errors(self, variables, made, image) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(L1 and LPIPS of each number, summed over an image's; the means of both)."""
    l1 = jnp.abs(made - image).sum(axis=(1, 2, 3))
    metrics = {"l1": l1.mean() / image[0].size}
    if self.perceptual is None:
      return l1, metrics
    distance = self.perceptual.image_distance(part(variables, "perceptual"), made, image)
    return l1 + self.perceptual_weight * distance * image[0].size, {
      **metrics,
      "lpips": distance.mean(),
    }

  def _reconstruction(self, variables, features, image, *, rng, step, train, frozen):
    """(the terms that both kinds have, metrics, the state) of the autoencoder's turn, per image.

    Args:
      variables: of everything.
      features: of the decoder's last layer but one.
      image: that they are of.
      rng: see `System.loss`, as the rest.
      step: see there.
      train: see there.
      frozen: see there.
    """
    params, count = variables["params"], len(image)
    scale, made = params.get("log_scale", jnp.zeros(())), self._apply(variables, "last", features)
    errors, metrics = self._errors(variables, made, image)
    nll = errors * jnp.exp(-scale) + scale * image[0].size
    terms, state = {"reconstruction": Term(nll.sum(), count)}, variables["state"]
    if not self.adversarial_weight:
      return terms, metrics, state
    how = dict(rng=rng, train=train, frozen=frozen)
    logits, state = self._judge(variables, made, **how)
    fooled = -logits.mean(axis=(1, 2, 3))
    on = step >= self.adversarial_from

    def length(of_image):
      """Of the gradient to the last layer's kernel."""
      stop = jax.lax.stop_gradient

      def through(kernel):
        last = {**params, "out": {**params["out"], "kernel": kernel}}
        return of_image(self._apply({**variables, "params": last}, "last", stop(features)))

      return jnp.linalg.norm(jax.grad(through)(stop(params["out"]["kernel"])))

    of_nll = length(lambda made: (self._errors(variables, made, image)[0] * jnp.exp(-scale)).mean())
    of_judge = length(lambda made: -self._judge(variables, made, **how)[0].mean())
    weight = jax.lax.stop_gradient((of_nll / (of_judge + 1e-4)).clip(0, LARGEST_WEIGHT))
    terms["adversarial"] = Term(fooled.sum(), count, on * weight * self.adversarial_weight)
    return terms, {**metrics, "adaptive_weight": weight}, state

  def _discriminate(self, variables, made, image, *, rng, step, train, frozen):
    """The hinge loss of the discriminator's turn."""
    how = dict(rng=rng, train=train, frozen=frozen)
    real, state = self._judge(variables, image, **how)
    fake, state = self._judge({**variables, "state": state}, jax.lax.stop_gradient(made), **how)
    on = step >= self.adversarial_from
    hinge = lambda x: Term(jax.nn.relu(1 + x).mean(axis=(1, 2, 3)).sum(), len(x), 0.5 * on)
    return {"real": hinge(-real), "fake": hinge(fake)}, Aux({"logit": fake.mean()}, state)

  def decode_latents(
    self, variables, latents: Float[Array, "batch rows columns dim"]
  ) -> Float[Array, "batch height width 3"]:
    return self._apply(variables, "decode", latents)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KLAutoencoder(_Autoencoder):
  """Latents of a Gaussian, whose divergence from the standard one has a small weight."""

  kl_weight: float = 1e-6
  learned_scale: bool = False  # s

  def posterior(
    self, variables, image: Float[Array, "batch height width 3"]
  ) -> tuple[Float[Array, "batch rows columns dim"], Float[Array, "batch rows columns dim"]]:
    """(mean, log-variance) of an image's latents."""
    mean, log_variance = jnp.split(self._apply(variables, "encode", image), 2, axis=-1)
    return mean, log_variance.clip(-30, 20)

  def encode_latents(
    self, variables, image: Float[Array, "batch height width 3"], rng: jax.Array
  ) -> Float[Array, "batch rows columns dim"]:
    """A sample."""
    mean, log_variance = self.posterior(variables, image)
    return mean + jnp.exp(log_variance / 2) * jax.random.normal(rng, mean.shape)

  def loss(self, variables, batch, rng, *, step, train, frozen, player="autoencoder"):
    """Nats of an image: ‖x − x̂‖₁ + LPIPS of each number, over eˢ, + s; 1e-6 KL; the adversarial term."""
    image, how = batch["image"], dict(rng=rng, step=step, train=train, frozen=frozen)
    mean, log_variance = self.posterior(variables, image)
    latents = mean + jnp.exp(log_variance / 2) * jax.random.normal(rng, mean.shape)
    features = self._apply(variables, "features", latents)
    if player == "discriminator":
      return self._discriminate(variables, self._apply(variables, "last", features), image, **how)
    terms, metrics, state = self._reconstruction(variables, features, image, **how)
    kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).sum()
    terms["kl"] = Term(kl, len(image), self.kl_weight)
    return terms, Aux({**metrics, "latent_std": latents.std()}, state)

  def reconstruct(
    self, variables, image: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch height width 3"]:
    """By the mean."""
    return self.decode_latents(variables, self.posterior(variables, image)[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQAutoencoder(_Autoencoder):
  """Latents that the decoder rounds to the nearest of `num_codes` codes; it tokenizes images too."""

  num_codes: int = 8192
  beta: float = 0.25  # of the commitment

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of an image's codes."""
    return (self.image_size // self.factor,) * 2

  def encode_latents(
    self, variables, image: Float[Array, "batch height width 3"], rng: jax.Array
  ) -> Float[Array, "batch rows columns dim"]:
    """Before they are rounded; `rng` is not used."""
    del rng
    return self._apply(variables, "encode", image)

  def decode_latents(
    self, variables, latents: Float[Array, "batch rows columns dim"]
  ) -> Float[Array, "batch height width 3"]:
    codebook = variables["params"]["codebook"]
    return self._apply(variables, "decode", codebook[nearest_code(latents, codebook)])

  def loss(self, variables, batch, rng, *, step, train, frozen, player="autoencoder"):
    """Per image: ‖x − x̂‖₁ + LPIPS of each number; the codebook's loss; the adversarial term."""
    image, how = batch["image"], dict(rng=rng, step=step, train=train, frozen=frozen)
    latents = self._apply(variables, "encode", image)
    codes, ids, codebook_loss, commitment = quantize(latents, variables["params"]["codebook"])
    features = self._apply(variables, "features", codes)
    if player == "discriminator":
      return self._discriminate(variables, self._apply(variables, "last", features), image, **how)
    terms, metrics, state = self._reconstruction(variables, features, image, **how)
    count = len(image)
    of_image = lambda mean: Term(mean * count * image[0].size, count)
    terms["codebook"] = of_image(codebook_loss + self.beta * commitment)
    return terms, Aux({**metrics, **codebook_usage(ids, self.num_codes)}, state)

  def image_to_tokens(
    self, variables, image: Float[Array, "batch height width 3"]
  ) -> Int[Array, "batch rows columns"]:
    """Each cell's code."""
    return nearest_code(self._apply(variables, "encode", image), variables["params"]["codebook"])

  def tokens_to_image(
    self, variables, tokens: Int[Array, "batch rows columns"]
  ) -> Float[Array, "batch height width 3"]:
    return self._apply(variables, "decode", variables["params"]["codebook"][tokens])

  def reconstruct(
    self, variables, image: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch height width 3"]:
    return self.tokens_to_image(variables, self.image_to_tokens(variables, image))
