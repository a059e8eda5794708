"""Accuracy of a classifier."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from vlx.evaluate import predict as embed
from vlx.models.vision import classifier
from vlx.train.run import Run


@dataclasses.dataclass(frozen=True)
class Classification:
  """Measures `SPLIT/accuracy`, in percent."""

  splits: tuple[str, ...]
  preprocess: str  # must keep "image" and "label"
  batch_size: int = 256

  def __call__(self, run: Run, variables, *, draw: bool) -> dict[str, float]:
    del draw
    measures = {}
    for split in self.splits:
      logits, targets = embed.over_split(
          run, variables, split, self.preprocess, "logits", ("image",), ("label",), self.batch_size
      )
      right = classifier.right(jnp.asarray(logits), jnp.asarray(targets["label"]))
      measures[f"{split}/accuracy"] = 100 * float(np.mean(right))
    return measures
