"""Image classification as a system: what ViT, VGG, GoogLeNet and ResNet share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from einops import rearrange, reduce
from jaxtyping import Array, Bool, Float, Int

from vlx.core.system import Aux, Term, image_input
from vlx.models.layers import apply

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of its colors


def cross_entropy(
  logits: Float[Array, "batch classes"],
  label: Int[Array, "batch *labels"],  # noqa: F821
  label_smoothing: float,
) -> Float[Array, " batch"]:
  """The cross-entropy of each image, in nats; an image's labels, if several, share its target (Joulin et al.,
  2016).
  """
  hot = jnp.eye(logits.shape[-1])[label]
  targets = optax.smooth_labels(reduce(hot, "b ... c -> b c", "mean"), label_smoothing)
  return optax.softmax_cross_entropy(logits, targets)


def is_correct(
  logits: Float[Array, "batch classes"],
  label: Int[Array, "batch *labels"],  # noqa: F821
) -> Bool[Array, " batch"]:
  """Whether an image's greatest logits are its labels'; logits that are no numbers are nobody's."""
  labels = label.reshape(len(label), -1)
  greatest = jax.lax.top_k(logits, labels.shape[1])[1]
  return (jnp.sort(greatest) == jnp.sort(labels)).all(axis=1) & jnp.isfinite(logits).all(axis=1)


class Classifier:
  """Softmax classification of `image` into `label`, around a subclass's `network`.

  A subclass is a frozen dataclass with the fields `num_classes`, `label_smoothing` and
  `num_labels`, a `tower`, image → (pooled, features), and a `network`, a Linen module image →
  logits. Batch statistics, if any, are the `state`.
  """

  def inputs(self):
    labels = (self.num_labels,) if self.num_labels > 1 else ()
    return {
      "image": image_input(self.tower.image_size),
      "label": jax.ShapeDtypeStruct(labels, jnp.int32),
    }

  def init(self, rng):
    return apply.init(self.network, rng, self.inputs(), "image")

  def loss(self, variables, batch, rng, *, step, train, frozen):
    """Cross entropy; `step` is not used."""
    del step
    logits, state = apply.forward(
      self.network, variables, batch["image"], rng=rng, train=train, frozen=frozen
    )
    return {"cross_entropy": self._term(logits, batch)}, Aux(self._accuracy(logits, batch), state)

  def accumulates(self):
    return "batch statistics are of the part" if self.tower.has_batch_statistics else ""

  def _term(self, logits, batch, weight=1.0) -> Term:
    each = cross_entropy(logits, batch["label"], self.label_smoothing)
    return Term(each.sum(), len(each), weight)

  def _accuracy(self, logits, batch):
    return {"accuracy": is_correct(logits, batch["label"]).mean()}

  def class_logits(
    self, variables, image: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch classes"]:
    return apply.infer(self.network, variables, image)

  def embed_image(
    self, variables, image: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch features"]:
    """The tower's pooled output, which the last layers make logits of."""
    return apply.infer(
      self.network, variables, image, method=lambda network, image: network.tower(image)[0]
    )

  def encode_image(
    self, variables, image: Float[Array, "batch height width 3"], *, layer: int = -1
  ) -> Float[Array, "batch places features"]:
    """The tower's last map, row by row, or ViT's tokens; of another layer where the tower has
    such (ViT).
    """
    return encode_places(self.tower, variables, "tower", image, layer)


class MapsFeatures:
  """Of a classifier whose tower sows the last map of each of its `stages`."""

  def feature_maps(
    self, variables, image: Float[Array, "batch height width 3"]
  ) -> tuple[Float[Array, "batch _rows _columns _features"], ...]:
    """The tower's last map of each size."""
    own = subnetwork(variables, "tower")
    _, sown = self.tower.apply(own, image, mutable=["intermediates"])
    return sown["intermediates"]["stages"]


def encode_places(
  tower, variables, name: str, image: Float[Array, "batch height width 3"], layer: int
) -> Float[Array, "batch places features"]:
  """A tower's vector at each position: its last map, row by row, its tokens, or those of another
  layer.

  Args:
    tower: the network.
    variables: of the system whose network has it as `name`.
    name: see there.
    image: for the tower.
    layer: -1: the last, normed; others by the tower's `hidden`.

  Raises:
    ValueError: for a layer of a tower that gives its last map alone.
  """
  own = subnetwork(variables, name)
  if layer != -1:
    return tower.hidden(own, image, layer)
  _, features = tower.apply(own, image)
  return features if features.ndim == 3 else rearrange(features, "b h w d -> b (h w) d")


def subnetwork(variables, name: str):
  """Flax's collections of a network inside a system's."""
  kinds = {"params": variables["params"], **variables["state"]}
  return {kind: tree[name] for kind, tree in kinds.items() if name in tree}


class LastMapOnly:
  """A tower of which the last map alone is given."""

  @nn.nowrap
  def hidden(self, own, image, layer):
    del own, image
    raise ValueError(f"{type(self).__name__} gives its last map alone, not that of layer {layer}")
