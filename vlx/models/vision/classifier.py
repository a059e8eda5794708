"""Image classification as a system: what ViT and ResNet share."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from vlx.models.system import Aux


class Classifier:
  """Softmax classification of `image` into `label`, around a subclass's `network`.

  A subclass is a frozen dataclass with the fields `num_classes` and `label_smoothing` and a
  `network`, a Linen module image → logits. Its batch statistics, if any, are the `state`.
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
    logits, state = self.network.apply(
        {"params": variables["params"], **variables["state"]}, batch["image"], train=train,
        rngs={"dropout": rng}, mutable=list(variables["state"]),
    )
    targets = optax.smooth_labels(
        jnp.eye(self.num_classes)[batch["label"]], self.label_smoothing
    )
    loss = optax.softmax_cross_entropy(logits, targets).mean()
    accuracy = (logits.argmax(-1) == batch["label"]).mean()
    return loss, Aux(metrics={"accuracy": accuracy}, state=state)

  def logits(self, variables, image) -> Float[Array, "batch classes"]:
    return self.network.apply({"params": variables["params"], **variables["state"]}, image)
