"""CLIP's residual network.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, §2.4.
Here: the image tower "ModifiedResNet" of the released code (openai/CLIP, model.py): a stem of three
convolutions and a mean, strides that are means over pixels, attention in place of the last pooling.

The released attention pool ends in a projection to CLIP's space; here, as for any image tower, that
is CLIP's `image_projection` (with a bias for this tower).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vlx.models.layers.position import resample_positions
from vlx.models.vision.classifier import LastMapOnly
from vlx.models.vision.resnet import ResidualBlock
from vlx.ops.attention import attention, attention_weights

HEAD_DIM = 64  # of the attention pool


class AttentionPool(nn.Module):
  """Map `[B, rows, columns, D]` → `[B, D]`: attention of its mean to itself and to all of the map.

  Positions are learned for a square map of `grid` x `grid`, and resampled for others. For callers
  that make the collection `intermediates` mutable, the weights `[batch, heads, 1, 1 + places]` are
  sown there as `attention`.
  """

  grid: int
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, x: Float[Array, "batch rows columns features"]
  ) -> Float[Array, "batch features"]:
    features, shape = x.shape[-1], x.shape[1:3]
    init = nn.initializers.normal(features**-0.5)
    positions = self.param("position_embedding", init, (1, 1 + self.grid**2, features))
    x = rearrange(x, "b h w d -> b (h w) d")
    x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
    x = x + resample_positions(positions, (self.grid, self.grid), shape).astype(x.dtype)
    project = functools.partial(
      nn.DenseGeneral, (features // HEAD_DIM, HEAD_DIM), kernel_init=init, dtype=self.dtype
    )
    queries, keys = project(name="query")(x[:, :1]), project(name="key")(x)
    if self.is_mutable_collection("intermediates"):
      self.sow("intermediates", "attention", attention_weights(queries, keys))
    pooled = attention(queries, keys, project(name="value")(x))
    return rearrange(pooled, "b 1 h e -> b (h e)")


class ModifiedResNet(LastMapOnly, nn.Module):
  """Image `[B, H, W, 3]` → (pooled `[B, width]`, feature map `[B, H/32, W/32, width]`), for four
  stages.
  """

  image_size: int
  stage_sizes: tuple[int, ...]
  stem_width: int
  dtype: str = "float32"

  has_batch_statistics = True

  @property
  def stride(self) -> int:
    """Pixels to a position of the last map."""
    return 4 * 2 ** (len(self.stage_sizes) - 1)

  @property
  def width(self) -> int:
    """Features of the last map."""
    return self.stem_width * self.stride

  @nn.compact
  def __call__(
    self, image: Float[Array, "batch height width 3"], *, train: bool = False
  ) -> tuple[Float[Array, "batch features"], Float[Array, "batch rows columns features"]]:
    x = jnp.asarray(image, self.dtype)
    half = self.stem_width // 2
    for i, (channels, stride) in enumerate(((half, 2), (half, 1), (self.stem_width, 1)), 1):
      x = nn.Conv(
        channels,
        (3, 3),
        stride,
        padding=1,
        use_bias=False,
        dtype=self.dtype,
        name=f"conv{i}",
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
      )(x)
      x = nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype, name=f"norm{i}")(x)
      x = jax.nn.relu(x)
    x = nn.avg_pool(x, (2, 2), (2, 2))
    for stage, blocks in enumerate(self.stage_sizes):
      for i in range(blocks):
        x = ResidualBlock(
          self.stem_width * 2**stage,
          2 if stage > 0 and i == 0 else 1,
          True,
          train,
          self.dtype,
          antialiased=True,
          name=f"stage{stage}_block{i}",
        )(x)
    return AttentionPool(self.image_size // self.stride, self.dtype, name="attention_pool")(x), x

  @nn.nowrap
  def attention_map(
    self, own, image: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch rows columns"]:
    """Where the attention pool looks, the mean over its heads; the mean's own share is dropped."""
    (_, features), collections = self.apply(own, image, mutable=["intermediates"])
    (weights,) = collections["intermediates"]["attention_pool"]["attention"]
    return rearrange(weights[:, :, 0, 1:].mean(axis=1), "b (h w) -> b h w", h=features.shape[1])
