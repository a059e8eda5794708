"""Image classification as a system: what ViT, VGG, GoogLeNet and ResNet share."""

import jax
import jax.numpy as jnp
import optax
from einops import reduce
from jaxtyping import Array, Bool, Float, Int

from vlx.core.system import Aux


def cross_entropy(
    logits: Float[Array, "batch classes"], label: Int[Array, "batch *labels"], label_smoothing: float
) -> Float[Array, ""]:
  """Mean over the batch, in nats; an image's labels, if several, share its target (Joulin et al., 2016)."""
  hot = jnp.eye(logits.shape[-1])[label]
  targets = optax.smooth_labels(reduce(hot, "b ... c -> b c", "mean"), label_smoothing)
  return optax.softmax_cross_entropy(logits, targets).mean()


def right(logits: Float[Array, "batch classes"], label: Int[Array, "batch *labels"]) -> Bool[Array, "batch"]:
  """Whether an image's greatest logits are its labels'."""
  labels = label.reshape(len(label), -1)
  greatest = jax.lax.top_k(logits, labels.shape[1])[1]
  return (jnp.sort(greatest) == jnp.sort(labels)).all(axis=1)


class Classifier:
  """Softmax classification of `image` into `label`, around a subclass's `network`.

  A subclass is a frozen dataclass with the fields `num_classes` and `label_smoothing` and a
  `network`, a Linen module image → logits, whose `tower` is image → (pooled, features). Its batch
  statistics, if any, are the `state`.
  """

  def init(self, rng, batch):
    variables = self.network.init(rng, batch["image"])
    return {
        "params": variables["params"],
        "state": {k: v for k, v in variables.items() if k != "params"},
    }

  def loss(self, variables, batch, rng, *, step, train):
    """Mean cross entropy and accuracy over the batch; `step` is not used."""
    del step
    logits, state = self._forward(variables, batch["image"], rng, train)
    loss = cross_entropy(logits, batch["label"], self.label_smoothing)
    return loss, Aux(metrics={"accuracy": right(logits, batch["label"]).mean()}, state=state)

  def _forward(self, variables, image, rng, train, method=None):
    """What the network (its `method`) makes of the image, and the new `state`."""
    return self.network.apply(
        {"params": variables["params"], **variables["state"]}, image, train=train,
        rngs={"dropout": rng}, mutable=list(variables["state"]), method=method,
    )

  def logits(self, variables, image) -> Float[Array, "batch classes"]:
    return self.network.apply({"params": variables["params"], **variables["state"]}, image)

  def encode_image(self, variables, image) -> Float[Array, "batch features"]:
    """The tower's pooled output, which the last layers make logits of."""
    return self.network.apply(
        {"params": variables["params"], **variables["state"]}, image,
        method=lambda network, image: network.tower(image)[0],
    )

  def features(self, variables, image) -> Float[Array, "batch ... features"]:
    """The tower's last map `[B, rows, columns, D]`, or ViT's tokens `[B, N, D]`."""
    return self.network.apply(
        {"params": variables["params"], **variables["state"]}, image,
        method=lambda network, image: network.tower(image)[1],
    )
