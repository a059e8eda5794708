"""Zero-shot classification with an ensemble of prompts (Radford et al., 2021, §3.1.4)."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from vlx.core.capabilities import EmbedsImages, EmbedsText
from vlx.core.errors import UserError
from vlx.data.records import strings
from vlx.evaluate import predict
from vlx.evaluate.data import Data
from vlx.evaluate.results import Results
from vlx.evaluate.tasks.retrieval import ranks
from vlx.model import Model, similarity


@dataclasses.dataclass(frozen=True)
class ZeroShot:
  """Measures `SPLIT/top1` and `SPLIT/top5`, in percent: the class whose prompts fit an image best.

  The classes are the distinct texts in `field` of the `classes` splits. A class's embedding is the
  mean of its prompts' normalised embeddings; ties are misses.

  Where `class_names` are given (`vlx.evaluate.tasks.class_names`), `field` holds ids from 0 on, or
  texts that stand for the names in the order of the alphabet, as ImageNet's n01440764, n01443537, …
  do; classes of the same name are one.
  """

  splits: tuple[str, ...]
  classes: tuple[str, ...]
  templates: tuple[str, ...]
  every: int = 0
  image_transform: str = ""
  batch_size: int = 256
  field: str = "caption"
  class_names: tuple[str, ...] = ()

  requires = (EmbedsImages, EmbedsText)
  better = {"top*": "higher"}

  def __call__(self, model: Model, data: Data) -> Results:
    names = sorted(set(self.class_names)) or self._texts(data)
    classes = predict.texts(model, names, batch_size=self.batch_size, templates=self.templates)
    measures = {}
    for split in self.splits:
      examples = data.examples(
        split, f'keep("image", {self.field!r})', image_transform=self.image_transform
      )
      image, targets = predict.predict_examples(
        model, examples, "embed_image", ("image",), (self.field,), batch_size=self.batch_size
      )
      said = self._names(data, targets[self.field])
      right = np.array([[n in strings(true) for n in names] for true in said])
      rank = np.asarray(ranks(similarity(model.system, image, classes), jnp.asarray(right, bool)))
      for k in (1, 5):
        measures[f"{split}/top{k}"] = 100 * float(np.mean(rank < k))
    return Results(measures)

  def _texts(self, data: Data) -> list[str]:
    """The distinct texts of the splits that classes come from, in the order of the alphabet."""
    return sorted({x for split in self.classes for x in data.source(split).texts((self.field,))})

  def _names(self, data: Data, labels: np.ndarray) -> Sequence[str]:
    """The name or names of each label.

    Raises:
      UserError: where labels and `class_names` are not of the same classes.
    """
    if not self.class_names:
      return labels
    count = len(self.class_names)
    if labels.dtype == object:
      found = self._texts(data)
      if len(found) != count:
        raise UserError(
          f"the splits {', '.join(self.classes)} hold {len(found)} different texts as {self.field}, but"
          f" there are {count} class_names; name splits of all classes"
        )
      name_of = dict(zip(found, self.class_names))
      return [name_of[label] for label in labels]
    if len(labels) and not 0 <= labels.min() <= labels.max() < count:
      raise UserError(
        f"{self.field} runs from {labels.min()} to {labels.max()}, but there are {count} class_names"
      )
    return [self.class_names[label] for label in labels]
