"""Residual networks.

He et al., "Deep Residual Learning for Image Recognition", 2016. Here: basic and bottleneck blocks
(Fig. 5) in the stages of Table 1, and the classifier as a system. The stride of a bottleneck stands
on its 3x3 convolution, as in torchvision's weights ("v1.5"), not on the first 1x1 of the paper.

Weights of torchvision take images normalised by ImageNet's mean (.485, .456, .406) and deviation
(.229, .224, .225), not by vlx's default. In training, the running variance gathers what the batch was divided
by; torch gathers n/(n - 1) times that.

`stem="cifar"` is the paper's network for small images (§4.2): one 3x3 convolution, no pooling.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlx.models.vision.classifier import Classifier, LastMapOnly, MapsFeatures

# Table 1.
STAGE_SIZES = {
  18: ((2, 2, 2, 2), False),
  34: ((3, 4, 6, 3), False),
  50: ((3, 4, 6, 3), True),
  101: ((3, 4, 23, 3), True),
  152: ((3, 8, 36, 3), True),
}


class ResidualBlock(nn.Module):
  """y = relu(F(x) + shortcut(x)), F of two 3x3 convolutions, or of 1x1, 3x3, 1x1 (bottleneck).

  `antialiased` bottlenecks take means over `stride` x `stride` pixels where others convolve with a stride
  (CLIP's, after Zhang, 2019, "Making Convolutional Networks Shift-Invariant Again").
  """

  channels: int
  stride: int
  bottleneck: bool
  train: bool
  dtype: str = "float32"
  antialiased: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, "batch height width channels"]
  ) -> Float[Array, "batch rows columns features"]:
    conv = functools.partial(
      nn.Conv,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    )
    norm = functools.partial(
      nn.BatchNorm, use_running_average=not self.train, momentum=0.9, dtype=self.dtype
    )
    # Explicit padding: with stride 2 "SAME" pads on one side only, torch on both.
    conv3 = functools.partial(conv, kernel_size=(3, 3), padding=1)
    conv1 = functools.partial(conv, kernel_size=(1, 1))
    shrink, stride = (lambda x: x), (self.stride, self.stride)
    if self.antialiased:
      shrink, stride = functools.partial(nn.avg_pool, window_shape=stride, strides=stride), (1, 1)
    if self.bottleneck:
      y = jax.nn.relu(norm(name="norm1")(conv1(self.channels, name="conv1")(x)))
      y = shrink(
        jax.nn.relu(norm(name="norm2")(conv3(self.channels, strides=stride, name="conv2")(y)))
      )
      ones, zeros = nn.initializers.ones, nn.initializers.zeros  # CLIP's blocks start as identities
      scale = zeros if self.antialiased else ones
      y = norm(name="norm3", scale_init=scale)(conv1(4 * self.channels, name="conv3")(y))
    else:
      y = jax.nn.relu(norm(name="norm1")(conv3(self.channels, strides=stride, name="conv1")(x)))
      y = norm(name="norm2")(conv3(self.channels, name="conv2")(y))
    if x.shape != y.shape:
      x = norm(name="shortcut_norm")(conv1(y.shape[-1], strides=stride, name="shortcut")(shrink(x)))
    return jax.nn.relu(x + y)


class ResNetTower(LastMapOnly, nn.Module):
  """Image `[B, H, W, 3]` → (pooled `[B, D]`, feature map `[B, H/32, W/32, D]`).

  With `stem="cifar"` the map is four times finer.
  """

  stage_sizes: tuple[int, ...]
  bottleneck: bool
  width: int = 64
  stem: str = "imagenet"
  dtype: str = "float32"
  image_size: int = 224  # that it is trained at; others work

  has_batch_statistics = True

  @nn.compact
  def __call__(
    self, image: Float[Array, "batch height width 3"], *, train: bool = False
  ) -> tuple[Float[Array, "batch features"], Float[Array, "batch rows columns features"]]:
    if self.stem not in ("imagenet", "cifar"):
      raise ValueError(f"stem is 'imagenet' or 'cifar', not {self.stem!r}")
    x = jnp.asarray(image, self.dtype)
    size, stride = ((7, 7), 2) if self.stem == "imagenet" else ((3, 3), 1)
    x = nn.Conv(
      self.width, size, stride, padding=size[0] // 2, use_bias=False, dtype=self.dtype, name="conv"
    )(x)
    x = nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype, name="norm")(x)
    x = jax.nn.relu(x)
    if self.stem == "imagenet":
      x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    for stage, blocks in enumerate(self.stage_sizes):
      for i in range(blocks):
        x = ResidualBlock(
          self.width * 2**stage,
          2 if stage > 0 and i == 0 else 1,
          self.bottleneck,
          train,
          self.dtype,
          name=f"stage{stage}_block{i}",
        )(x)
      self.sow("intermediates", "stages", x)
    return x.mean(axis=(1, 2)), x


class ResNetNetwork(nn.Module):
  tower: ResNetTower
  num_classes: int

  @nn.compact
  def __call__(
    self, image: Float[Array, "batch height width 3"], *, train: bool = False
  ) -> Float[Array, "batch classes"]:
    x, _ = self.tower(image, train=train)
    return nn.Dense(self.num_classes, name="head")(jnp.asarray(x, jnp.float32))


@dataclasses.dataclass(frozen=True)
class ResNet(MapsFeatures, Classifier):
  """The classifier of the paper. Batches hold `image` and `label`."""

  tower: ResNetTower
  num_classes: int
  label_smoothing: float = 0.0
  num_labels: int = 1  # of an image

  @property
  def network(self) -> nn.Module:
    return ResNetNetwork(self.tower, self.num_classes)
