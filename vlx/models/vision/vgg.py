"""VGG.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014.
Here: the networks A, B, D and E of Table 1 (11, 13, 16 and 19 layers), and the classifier as a
system. The tower ends before the last pooling: for an image of 224x224 its map is 14x14x512, the
annotations of Show, Attend and Tell (Xu et al., 2015); the pooling belongs to the dense layers.

Weights of torchvision take images normalised by ImageNet's mean (.485, .456, .406) and deviation
(.229, .224, .225), not by vlx's default.

Departures, as in torchvision: initialisation for rectifiers (He et al., 2015) in place of
pretraining with network A; an image of another size is averaged to the dense layers' 7x7, where the
paper slides them over the image (§3.2).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vlx.models.layers.pooling import adaptive_average_pool
from vlx.models.vision.classifier import Classifier, LastMapOnly, MapsFeatures

# Table 1: how many convolutions stand before each pooling.
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
GRID = (7, 7)  # what the dense layers see of an image of 224x224


class VGGTower(LastMapOnly, nn.Module):
  """Image `[B, H, W, 3]` → (pooled `[B, D]`, map `[B, H/16, W/16, D]`).

  The map is the last convolution's, rectified (conv5_3 of network D); pooled is its mean.
  """

  convolutions: tuple[int, ...]
  width: int = 64
  dtype: str = "float32"
  image_size: int = 224  # that it is trained at; others work

  has_batch_statistics = False

  @nn.compact
  def __call__(
    self, image: Float[Array, "batch height width 3"], *, train: bool = False
  ) -> tuple[Float[Array, "batch features"], Float[Array, "batch rows columns features"]]:
    del train  # nothing here differs: dropout stands between the dense layers
    x = jnp.asarray(image, self.dtype)
    for stage, count in enumerate(self.convolutions):
      if stage:
        x = nn.max_pool(x, (2, 2), (2, 2))
      if not all(x.shape[1:3]):
        raise ValueError(
          f"an image of {image.shape[1]}x{image.shape[2]} is too small for {len(self.convolutions)} stages"
        )
      for i in range(count):
        x = nn.Conv(
          self.width * min(2**stage, 8),
          (3, 3),
          padding=1,
          dtype=self.dtype,
          kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
          name=f"conv{stage + 1}_{i + 1}",
        )(x)
        x = jax.nn.relu(x)
      self.sow("intermediates", "stages", x)
    return x.mean(axis=(1, 2)), x


class VGGNetwork(nn.Module):
  """Tower, pooling, and three dense layers with dropout of one half after the first two (§3.1)."""

  tower: VGGTower
  num_classes: int
  hidden: int

  @nn.compact
  def __call__(
    self, image: Float[Array, "batch height width 3"], *, train: bool = False
  ) -> Float[Array, "batch classes"]:
    _, x = self.tower(image, train=train)
    x = adaptive_average_pool(nn.max_pool(x, (2, 2), (2, 2)), GRID)
    x = rearrange(x, "b h w c -> b (h w c)")
    for name in ("fc6", "fc7"):
      x = nn.Dense(
        self.hidden, dtype=self.tower.dtype, kernel_init=nn.initializers.normal(0.01), name=name
      )(x)
      x = nn.Dropout(0.5, deterministic=not train)(jax.nn.relu(x))
    return nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="head")(
      jnp.asarray(x, jnp.float32)
    )


@dataclasses.dataclass(frozen=True)
class VGG(MapsFeatures, Classifier):
  """The classifier of the paper. Batches hold `image` and `label`; `encode_image` gives the
  annotations.
  """

  tower: VGGTower
  num_classes: int
  hidden: int = 4096
  label_smoothing: float = 0.0
  num_labels: int = 1  # of an image

  @property
  def network(self) -> nn.Module:
    return VGGNetwork(self.tower, self.num_classes, self.hidden)
