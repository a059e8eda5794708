"""Zero-shot classification with an ensemble of prompts (Radford et al., 2021, §3.1.4)."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from vlx.core.capabilities import EmbedsImages, EmbedsText
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
  """

  splits: tuple[str, ...]
  classes: tuple[str, ...]
  templates: tuple[str, ...]
  every: int = 0
  image_transform: str = ""
  batch_size: int = 256
  field: str = "caption"

  requires = (EmbedsImages, EmbedsText)
  better = {"top*": "higher"}

  def __call__(self, model: Model, data: Data) -> Results:
    names = sorted({n for split in self.classes for n in data.source(split).texts((self.field,))})
    classes = predict.texts(model, names, batch_size=self.batch_size, templates=self.templates)
    measures = {}
    for split in self.splits:
      examples = data.examples(
        split, f'keep("image", {self.field!r})', image_transform=self.image_transform
      )
      image, targets = predict.predict_examples(
        model, examples, "embed_image", ("image",), (self.field,), batch_size=self.batch_size
      )
      right = np.array([[n in strings(said) for n in names] for said in targets[self.field]])
      rank = np.asarray(ranks(similarity(model.system, image, classes), jnp.asarray(right, bool)))
      for k in (1, 5):
        measures[f"{split}/top{k}"] = 100 * float(np.mean(rank < k))
    return Results(measures)
