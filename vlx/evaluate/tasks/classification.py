"""Accuracy of a classifier."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from vlx.core.capabilities import Classifies
from vlx.evaluate import predict
from vlx.evaluate.data import Data
from vlx.evaluate.results import Results
from vlx.model import Model
from vlx.models.vision import classifier


@dataclasses.dataclass(frozen=True)
class Classification:
  """Measures `SPLIT/accuracy`, in percent."""

  splits: tuple[str, ...]
  every: int = 0
  image_transform: str = ""  # instead of the data's, where a label is made of an image
  ops: str = ""  # behind it, that make `label`
  batch_size: int = 256

  requires = (Classifies,)
  better = {"accuracy": "higher"}

  def __call__(self, model: Model, data: Data) -> Results:
    measures = {}
    for split in self.splits:
      examples = data.examples(
        split, self.ops, 'keep("image", "label")', image_transform=self.image_transform
      )
      logits, targets = predict.predict_examples(
        model, examples, "class_logits", ("image",), ("label",), batch_size=self.batch_size
      )
      right = classifier.is_correct(jnp.asarray(logits), jnp.asarray(targets["label"]))
      measures[f"{split}/accuracy"] = 100 * float(np.mean(right))
    return Results(measures)
