"""GoogLeNet.

Szegedy et al., "Going Deeper with Convolutions", 2014. Here: the network of Table 1 and Figure 3,
its auxiliary classifiers and their loss (§5), and the classifier as a system.

By default in the form that torchvision's weights need: batch normalisation (Ioffe & Szegedy, 2015)
after each convolution, 3x3 where the paper has 5x5, a last pooling of 2x2. `PAPER` gives the fields
of the paper's own: true 5x5, biases, and local response normalisation, as in Caffe's model of it
(BVLC/caffe, models/bvlc_googlenet).

Images are in [-1, 1], as everywhere here. That is what torchvision's weights want: its
`transform_input` only undoes the normalisation by ImageNet's mean that its preprocessing does.

Departure: the auxiliary classifiers average any map to 4x4 as torchvision does; the paper's windows
of 5x5, three apart, give 4x4 of an image of 224x224 alone.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vlx.core.system import Aux
from vlx.models.layers import apply
from vlx.models.layers.pooling import adaptive_average_pool, max_pool_ceil
from vlx.models.vision.classifier import Classifier, LastMapOnly

# Table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
BLOCKS = {
  "3a": (64, 96, 128, 16, 32, 32),
  "3b": (128, 128, 192, 32, 96, 64),
  "4a": (192, 96, 208, 16, 48, 64),
  "4b": (160, 112, 224, 24, 64, 64),
  "4c": (128, 128, 256, 24, 64, 64),
  "4d": (112, 144, 288, 32, 64, 64),
  "4e": (256, 160, 320, 32, 128, 128),
  "5a": (256, 160, 320, 32, 128, 128),
  "5b": (384, 192, 384, 48, 128, 128),
}
AUXILIARY = {"auxiliary1": "4a", "auxiliary2": "4d"}  # which block each stands on
# of the tower; the system's: dropout=0.4
PAPER = dict(batch_norm=False, wide_kernel=5, last_pool=3)


def local_response_norm(
  x: Float[Array, "batch height width channels"],
  size: int = 5,
  alpha: float = 1e-4,
  beta: float = 0.75,
) -> Float[Array, "batch height width channels"]:
  """x / (1 + α·mean of the squares of `size` neighbouring channels)^β, zeros beyond the first and
  last.

  Krizhevsky et al., 2012, §3.3, with the mean and the one of Caffe's.
  """
  squares = jax.lax.reduce_window(
    x * x, jnp.zeros((), x.dtype), jax.lax.add, (1, 1, 1, size), (1, 1, 1, 1), "SAME"
  )
  return x * (1 + alpha / size * squares) ** -beta


class ConvolutionBlock(nn.Module):
  """Convolution, batch normalisation (or a bias), rectifier."""

  channels: int
  kernel: int
  train: bool
  batch_norm: bool = True
  stride: int = 1
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, x: Float[Array, "batch height width channels"]
  ) -> Float[Array, "batch rows columns features"]:
    if self.batch_norm:
      init = dict(kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"))
    else:  # Caffe's fillers
      init = dict(
        kernel_init=nn.initializers.xavier_uniform(), bias_init=nn.initializers.constant(0.2)
      )
    # Explicit padding: with stride 2 "SAME" pads on one side more, torch and Caffe on both.
    x = nn.Conv(
      self.channels,
      (self.kernel, self.kernel),
      (self.stride, self.stride),
      padding=self.kernel // 2,
      use_bias=not self.batch_norm,
      dtype=self.dtype,
      name="conv",
      **init,
    )(x)
    if self.batch_norm:
      x = nn.BatchNorm(not self.train, momentum=0.9, epsilon=1e-3, dtype=self.dtype, name="norm")(x)
    return jax.nn.relu(x)


class GoogLeNetTower(LastMapOnly, nn.Module):
  """Image `[B, H, W, 3]` → (pooled `[B, D]`, map `[B, H/32, W/32, D]`), D = 16 `width`."""

  batch_norm: bool = True
  wide_kernel: int = 3  # of the paper's 5x5
  last_pool: int = 2  # window of the pooling after block 4e
  width: int = 64
  dtype: str = "float32"
  image_size: int = 224  # that it is trained at; others work

  @property
  def has_batch_statistics(self) -> bool:
    return self.batch_norm

  def __call__(
    self, image: Float[Array, "batch height width 3"], *, train: bool = False
  ) -> tuple[Float[Array, "batch features"], Float[Array, "batch rows columns features"]]:
    x = self.maps(image, train=train)["5b"]
    return x.mean(axis=(1, 2)), x

  @nn.compact
  def maps(
    self, image: Float[Array, "batch height width 3"], *, train: bool = False
  ) -> dict[str, Float[Array, "batch _ _ _"]]:
    """Output of each inception block, by the names of Table 1."""

    def convolve(channels, kernel, name, x, stride=1):
      return ConvolutionBlock(
        channels * self.width // 64, kernel, train, self.batch_norm, stride, self.dtype, name=name
      )(x)

    def inception(channels, name, x):
      one, reduce3, three, reduce5, five, projection = channels
      return jnp.concatenate(
        [
          convolve(one, 1, f"{name}_1x1", x),
          convolve(three, 3, f"{name}_3x3", convolve(reduce3, 1, f"{name}_3x3_reduce", x)),
          convolve(
            five, self.wide_kernel, f"{name}_5x5", convolve(reduce5, 1, f"{name}_5x5_reduce", x)
          ),
          convolve(
            projection, 1, f"{name}_projection", nn.max_pool(x, (3, 3), padding=((1, 1), (1, 1)))
          ),
        ],
        axis=-1,
      )

    respond = (lambda x: x) if self.batch_norm else local_response_norm
    x = convolve(64, 7, "conv1", jnp.asarray(image, self.dtype), stride=2)
    x = respond(max_pool_ceil(x, 3, 2))
    x = convolve(64, 1, "conv2_reduce", x)
    x = respond(convolve(192, 3, "conv2", x))
    x = max_pool_ceil(x, 3, 2)
    maps = {}
    for block, channels in BLOCKS.items():
      x = maps[block] = inception(channels, f"inception{block}", x)
      if block == "3b":
        x = max_pool_ceil(x, 3, 2)
      if block == "4e":
        x = max_pool_ceil(x, self.last_pool, 2)
    return maps


class AuxiliaryClassifier(nn.Module):
  """Logits of a map in the middle (§5)."""

  num_classes: int
  width: int
  train: bool
  batch_norm: bool
  dtype: str

  @nn.compact
  def __call__(
    self, x: Float[Array, "batch rows columns channels"]
  ) -> Float[Array, "batch classes"]:
    x = adaptive_average_pool(x, (4, 4))
    x = ConvolutionBlock(
      2 * self.width, 1, self.train, self.batch_norm, dtype=self.dtype, name="conv"
    )(x)
    x = rearrange(x, "b h w c -> b (h w c)")
    x = jax.nn.relu(nn.Dense(16 * self.width, dtype=self.dtype, name="fc")(x))
    x = nn.Dropout(0.7, deterministic=not self.train)(x)
    return nn.Dense(self.num_classes, name="head")(jnp.asarray(x, jnp.float32))


class GoogLeNetNetwork(nn.Module):
  tower: GoogLeNetTower
  num_classes: int
  auxiliary: bool
  dropout: float

  def __call__(
    self, image: Float[Array, "batch height width 3"], *, train: bool = False
  ) -> Float[Array, "batch classes"]:
    return self.all_logits(image, train=train)[0]

  @nn.compact
  def all_logits(
    self, image: Float[Array, "batch height width 3"], *, train: bool = False
  ) -> list[Float[Array, "batch classes"]]:
    """Logits of the network, then of the auxiliary classifiers if it has them."""
    maps = self.tower.maps(image, train=train)
    x = jnp.asarray(maps["5b"].mean(axis=(1, 2)), jnp.float32)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    logits = [nn.Dense(self.num_classes, name="head")(x)]
    if self.auxiliary:
      logits += [
        AuxiliaryClassifier(
          self.num_classes,
          self.tower.width,
          train,
          self.tower.batch_norm,
          self.tower.dtype,
          name=name,
        )(maps[block])
        for name, block in AUXILIARY.items()
      ]
    return logits


@dataclasses.dataclass(frozen=True)
class GoogLeNet(Classifier):
  """The classifier of the paper. Batches hold `image` and `label`."""

  tower: GoogLeNetTower
  num_classes: int
  auxiliary: bool = False
  dropout: float = 0.2  # torchvision's; the paper's is 0.4
  label_smoothing: float = 0.0
  num_labels: int = 1  # of an image

  @property
  def network(self) -> nn.Module:
    return GoogLeNetNetwork(self.tower, self.num_classes, self.auxiliary, self.dropout)

  def loss(self, variables, batch, rng, *, step, train, frozen):
    """Cross entropy; in training that of each auxiliary classifier too, at a weight of 0.3 (§5)."""
    del step
    outputs, state = apply.forward(
      self.network,
      variables,
      batch["image"],
      rng=rng,
      train=train,
      frozen=frozen,
      method="all_logits",
    )
    terms = {"cross_entropy": self._term(outputs[0], batch)}
    if train:
      terms |= {name: self._term(x, batch, 0.3) for name, x in zip(AUXILIARY, outputs[1:])}
    return terms, Aux(self._accuracy(outputs[0], batch), state)
