"""The UNet of diffusion models, in the forms that papers give it, of one set of parts.

- DDPM (Ho et al., 2020, appendix B): attention of one head at 16x16, the time added.
- ADM (Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, §3): the time scales and shifts what is
  normalised, residual blocks change the size, attention at 32, 16 and 8 with heads of 64 channels; classes; the image
  of low resolution that an upsampler has on its channels.
- Latent diffusion (Rombach et al., 2022, appendix E) and Stable Diffusion: transformers with cross-attention, GEGLU.

Images are `[batch, height, width, channels]`; sides divide by 2^(levels − 1). Levels are counted from 0, the largest.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from vlx.models.layers.attention import MultiHeadAttention
from vlx.models.layers.convolution import double
from vlx.models.layers.linear import flat_dot_general
from vlx.ops.attention import attention
from vlx.ops.masks import Full, KeyPadding, Mask

Images = Float[Array, "batch height width channels"]
Changed = Float[Array, "batch _height _width _channels"]  # of another size or width
Tokens = Float[Array, "batch length width"]
Context = Float[Array, "batch keys context_width"]

# hojonathanho/diffusion nn.py
uniform = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
zeros = nn.initializers.zeros  # the last layer of each residual branch, and of the network


def conv3x3(features: int, dtype: str, name: str, kernel_init=uniform) -> nn.Conv:
  return nn.Conv(features, (3, 3), padding=1, kernel_init=kernel_init, dtype=dtype, name=name)


def sinusoids(
  t: Float[Array, " batch"], width: int, *, cos_first: bool, shift: int
) -> Float[Array, "batch width"]:
  """sin and cos of t · 10000^(−i / (width/2 − shift)): DDPM has shift 1, what came later cos first and shift 0."""
  half = width // 2
  angles = t[:, None] * jnp.exp(-math.log(10_000) / (half - shift) * jnp.arange(half))
  parts = (jnp.cos(angles), jnp.sin(angles)) if cos_first else (jnp.sin(angles), jnp.cos(angles))
  return jnp.concatenate(parts, axis=-1)


class ResidualBlock(nn.Module):
  """Two convolutions with the embedding of the time between them; at half or twice the size, where told."""

  features: int
  groups: int
  epsilon: float
  dropout: float = 0.0
  scale_shift: bool = False  # of what is normalised; else the embedding is added
  resample: str = ""  # down or up
  train: bool = False
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Images, embedding: Float[Array, "batch dim"] | None) -> Changed:
    norm = lambda name: nn.GroupNorm(self.groups, epsilon=self.epsilon, dtype=self.dtype, name=name)
    dense = functools.partial(nn.Dense, kernel_init=uniform, dtype=self.dtype)
    sized = {"": lambda x: x, "up": double, "down": lambda x: nn.avg_pool(x, (2, 2), (2, 2))}[
      self.resample
    ]
    h = conv3x3(self.features, self.dtype, "conv1")(sized(nn.silu(norm("norm1")(x))))
    x = sized(x)
    h_norm = norm("norm2")
    if embedding is None:
      h = h_norm(h)
    else:
      e = dense(self.features * (1 + self.scale_shift), name="embedding")(nn.silu(embedding))[
        :, None, None
      ]
      if self.scale_shift:
        scale, shift = jnp.split(e, 2, axis=-1)
        h = h_norm(h) * (1 + scale) + shift
      else:
        h = h_norm(h + e)
    h = nn.Dropout(self.dropout, deterministic=not self.train)(nn.silu(h))
    h = conv3x3(self.features, self.dtype, "conv2", zeros)(h)
    if x.shape[-1] != self.features:
      x = dense(self.features, dot_general=flat_dot_general, name="shortcut")(x)
    return x + h


class JointAttention(nn.Module):
  """Attention of an image's positions to a context and to one another, in one softmax, added (GLIDE: Nichol et al.,
  2021, §2.1)."""

  num_heads: int
  groups: int
  epsilon: float
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Images, context: Context, mask: Bool[Array, "batch keys"] | None) -> Images:
    width = x.shape[-1]
    h = nn.GroupNorm(self.groups, epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
    h = rearrange(h, "b h w c -> b (h w) c")

    def project(
      name, of, features=(self.num_heads, width // self.num_heads), axis=-1, init=uniform
    ):
      dense = nn.DenseGeneral(
        features, axis, kernel_init=init, dtype=self.dtype, dot_general=flat_dot_general, name=name
      )
      return dense(of)

    keys, values = (
      jnp.concatenate([project(f"context_{name}", context), project(name, h)], axis=1)
      for name in ("key", "value")
    )
    seen = None
    if mask is not None:
      seen = KeyPadding(jnp.concatenate([mask, jnp.ones(h.shape[:2], bool)], axis=1))
    h = attention(project("query", h), keys, values, mask=Full() if seen is None else seen)
    h = project("out", h, width, (-2, -1), zeros)
    return x + h.reshape(x.shape)


class SelfAttention(nn.Module):
  """Attention of an image's positions to one another, added."""

  num_heads: int
  groups: int
  epsilon: float
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Images) -> Images:
    h = nn.GroupNorm(self.groups, epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
    h = rearrange(h, "b h w c -> b (h w) c")
    h = MultiHeadAttention(
      self.num_heads, kernel_init=uniform, out_init=zeros, dtype=self.dtype, name="attention"
    )(h)
    return x + h.reshape(x.shape)


class GEGLU(nn.Module):
  """Dense(a · GELU(g)), (a, g) = Dense(x) (Shazeer, 2020)."""

  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Tokens) -> Tokens:
    dense = functools.partial(
      nn.Dense, kernel_init=uniform, dtype=self.dtype, dot_general=flat_dot_general
    )
    width = x.shape[-1]
    x, gate = jnp.split(dense(8 * width, name="fc1")(x), 2, axis=-1)
    return dense(width, name="fc2")(x * nn.gelu(gate, approximate=False))


class TransformerBlock(nn.Module):
  """Self-attention, attention to a context, GEGLU, each of what is normalised, and added (the paper's appendix E.2.1
  has the second and the third the other way round; its code does this).
  """

  num_heads: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Tokens, context: Context, mask: Mask) -> Tokens:
    norm = lambda name: nn.LayerNorm(1e-5, dtype=self.dtype, name=name)
    attend = lambda name: MultiHeadAttention(
      self.num_heads,
      qkv_bias=False,
      kernel_init=uniform,
      out_init=uniform,
      dtype=self.dtype,
      name=name,
    )
    x = x + attend("self_attention")(norm("self_norm")(x))
    x = x + attend("cross_attention")(norm("cross_norm")(x), mask, context)
    return x + GEGLU(self.dtype, name="mlp")(norm("mlp_norm")(x))


class SpatialTransformer(nn.Module):
  """Transformer blocks over an image's positions, added."""

  num_heads: int
  depth: int
  groups: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Images, context: Context, mask: Mask) -> Images:
    dense = functools.partial(nn.Dense, x.shape[-1], dtype=self.dtype, dot_general=flat_dot_general)
    h = nn.GroupNorm(self.groups, epsilon=1e-6, dtype=self.dtype, name="norm")(x)
    h = dense(kernel_init=uniform, name="in")(rearrange(h, "b h w c -> b (h w) c"))
    for i in range(self.depth):
      h = TransformerBlock(self.num_heads, self.dtype, name=f"block{i}")(h, context, mask)
    h = dense(kernel_init=zeros, name="out")(h)
    return x + h.reshape(x.shape)


class Downsample(nn.Module):
  """3x3 convolution of stride 2, padded on both sides or, as DDPM's and autoencoders' are, below and right."""

  features: int
  symmetric: bool
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Images) -> Changed:
    padding = ((1, 1), (1, 1)) if self.symmetric else ((0, 1), (0, 1))
    conv = nn.Conv(
      self.features, (3, 3), (2, 2), padding, kernel_init=uniform, dtype=self.dtype, name="conv"
    )
    return conv(x)


class Upsample(nn.Module):
  """Each pixel as 2x2, and a 3x3 convolution."""

  features: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Images) -> Changed:
    return conv3x3(self.features, self.dtype, "conv")(double(x))


class UNet(nn.Module):
  """(x_t, t, and what it is conditioned on) → a prediction.

  Attributes:
    channels: of the prediction; twice the image's where the variance is learned.
    width: of the first level.
    multipliers: of the width, a level's each.
    num_blocks: residual blocks of a level on the way down; one more on the way up.
    attention_at: factors of size, 1 the full one, at which there is attention.
    middle_attention: whether there is some in the middle.
    num_heads: of attention; where `head_dim` is given, as many as make up the width.
    head_dim: of each head; 0: by `num_heads`.
    transformer_depth: blocks of a transformer with cross-attention in place of plain attention; 0: plain.
    joint_attention: whether plain attention sees a context beside the image (`JointAttention`).
    scale_shift: see `ResidualBlock`.
    residual_resampling: whether residual blocks change the size, or convolutions.
    symmetric_padding: of convolutions that halve the size.
    cos_first: see `sinusoids`.
    frequency_shift: see `sinusoids`.
    num_classes: rows of a table whose vectors are added to the time's; 0: none.
    dropout: in residual blocks.
    groups: of the norms.
    epsilon: of the norms of residual blocks.
    remat: whether each block is computed again for its gradients, not kept.
    dtype: of the computation.
  """

  channels: int
  width: int
  multipliers: tuple[int, ...]
  num_blocks: int = 2
  attention_at: tuple[int, ...] = ()
  middle_attention: bool = True
  num_heads: int = 1
  head_dim: int = 0
  transformer_depth: int = 0
  joint_attention: bool = False
  scale_shift: bool = False
  residual_resampling: bool = False
  symmetric_padding: bool = True
  cos_first: bool = True
  frequency_shift: int = 0
  num_classes: int = 0
  dropout: float = 0.0
  groups: int = 32
  epsilon: float = 1e-5
  remat: bool = False
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self,
    x: Images,
    t: Float[Array, " batch"] | Int[Array, " batch"],
    *,
    label: Int[Array, " batch"] | None = None,
    embedding: Float[Array, "batch embedding"] | None = None,
    context: Float[Array, "batch length dim"] | None = None,
    context_mask: Bool[Array, "batch length"] | None = None,
    low_resolution: Float[Array, "batch rows columns channels"] | None = None,
    train: bool = False,
  ) -> Float[Array, "batch height width out"]:
    """The prediction, f32.

    Args:
      x: x_t.
      t: steps.
      label: classes, of a network that has them.
      embedding: that is added to the time's, 4 x `width` wide.
      context: for attention to it.
      context_mask: where there is something; None: everywhere.
      low_resolution: an image that is put beside x_t, at its size.
      train: with dropout.
    """
    residual = nn.remat(ResidualBlock) if self.remat else ResidualBlock
    block = functools.partial(
      residual,
      groups=self.groups,
      epsilon=self.epsilon,
      dropout=self.dropout,
      scale_shift=self.scale_shift,
      train=train,
      dtype=self.dtype,
    )
    mask = Full() if context_mask is None else KeyPadding(context_mask)

    def attend(x, name):
      heads = x.shape[-1] // self.head_dim if self.head_dim else self.num_heads
      if self.joint_attention:
        joint = JointAttention(heads, self.groups, self.epsilon, self.dtype, name=name)
        return joint(x, context, context_mask)
      if not self.transformer_depth:
        return SelfAttention(heads, self.groups, self.epsilon, self.dtype, name=name)(x)
      transformer = SpatialTransformer(
        heads, self.transformer_depth, self.groups, self.dtype, name=name
      )
      return transformer(x, context, mask)

    e = self._embed(t, label)
    if embedding is not None:
      e = e + embedding.astype(e.dtype)
    if low_resolution is not None:
      side = (*x.shape[:3], low_resolution.shape[-1])
      x = jnp.concatenate([x, jax.image.resize(low_resolution, side, "bilinear")], axis=-1)
    x = conv3x3(self.width, self.dtype, "in")(x.astype(self.dtype))
    kept, levels = [x], range(len(self.multipliers))
    for i in levels:
      features = self.width * self.multipliers[i]
      for j in range(self.num_blocks):
        x = block(features, name=f"down{i}_block{j}")(x, e)
        if 2**i in self.attention_at:
          x = attend(x, f"down{i}_attention{j}")
        kept.append(x)
      if i != levels[-1]:
        if self.residual_resampling:
          x = block(features, resample="down", name=f"down{i}_resample")(x, e)
        else:
          x = Downsample(features, self.symmetric_padding, self.dtype, name=f"down{i}_resample")(x)
        kept.append(x)
    x = block(features, name="middle_block0")(x, e)
    if self.middle_attention:
      x = attend(x, "middle_attention")
    x = block(features, name="middle_block1")(x, e)
    for i in reversed(levels):
      features = self.width * self.multipliers[i]
      for j in range(self.num_blocks + 1):
        x = block(features, name=f"up{i}_block{j}")(jnp.concatenate([x, kept.pop()], axis=-1), e)
        if 2**i in self.attention_at:
          x = attend(x, f"up{i}_attention{j}")
      if i:
        if self.residual_resampling:
          x = block(features, resample="up", name=f"up{i}_resample")(x, e)
        else:
          x = Upsample(features, self.dtype, name=f"up{i}_resample")(x)
    x = nn.silu(
      nn.GroupNorm(self.groups, epsilon=self.epsilon, dtype=self.dtype, name="out_norm")(x)
    )
    return conv3x3(self.channels, self.dtype, "out", zeros)(x).astype(jnp.float32)

  def _embed(self, t, label) -> Float[Array, "batch dim"]:
    dense = functools.partial(nn.Dense, 4 * self.width, kernel_init=uniform, dtype=self.dtype)
    e = sinusoids(
      t.astype(jnp.float32), self.width, cos_first=self.cos_first, shift=self.frequency_shift
    )
    e = dense(name="time2")(nn.silu(dense(name="time1")(e)))
    if self.num_classes:
      table = nn.Embed(
        self.num_classes, 4 * self.width, embedding_init=nn.initializers.normal(0.02), name="label"
      )
      e = e + table(label).astype(e.dtype)
    return e
