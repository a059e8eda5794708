"""LPIPS: how different two images look, in the features of a classifier.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018, §3: features of several
layers, unit vectors over the channels, squared differences weighted by channel, averaged over positions, summed over
layers. The published weights are learned above VGG-16; without them each channel counts the same (the paper's
baseline), above any network that gives its maps.

Images are in [-1, 1]; the network below takes them as it was trained, which for ImageNet's VGG is normalised.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from vlx.core.capabilities import MapsFeatures
from vlx.core.system import part
from vlx.models.vision.classifier import IMAGENET

EPSILON = 1e-10  # of the length


@dataclasses.dataclass(frozen=True)
class LPIPS:
  """The distance; the network below is a part that rests.

  Attributes:
    network: whose maps are compared.
    channels: of the maps that have weights of their own; (): none has.
    imagenet: whether the network takes images normalised by ImageNet's mean and deviation.
  """

  network: MapsFeatures
  channels: tuple[int, ...] = ()
  imagenet: bool = False

  def init(self, rng):
    del rng  # nothing is learned here
    weights = {f"linear{i}": jnp.ones(n) for i, n in enumerate(self.channels)}
    return {"params": weights, "state": {}}

  def image_distance(
    self,
    variables,
    image: Float[Array, "batch height width 3"],
    other: Float[Array, "batch height width 3"],
  ) -> Float[Array, " batch"]:
    maps, others = (self._maps(variables, x) for x in (image, other))
    total = jnp.zeros(len(image))
    for i, (a, b) in enumerate(zip(maps, others)):
      squares = jnp.square(a - b)
      weights = variables["params"][f"linear{i}"] if self.channels else 1.0
      total += (squares * weights).sum(axis=-1).mean(axis=(1, 2))
    return total

  def _maps(self, variables, image):
    if self.imagenet:
      mean, deviation = map(jnp.array, IMAGENET)
      image = ((image + 1) / 2 - mean) / deviation
    maps = self.network.feature_maps(part(variables, "network"), image)
    length = lambda x: jnp.sqrt(jnp.square(x).sum(axis=-1, keepdims=True) + EPSILON**2)
    return [x / (length(x) + EPSILON) for x in (x.astype(jnp.float32) for x in maps)]
