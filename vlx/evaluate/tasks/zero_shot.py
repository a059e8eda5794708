"""Zero-shot classification with an ensemble of prompts (Radford et al., 2021, §3.1.4)."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from vlx.evaluate import predict as embed
from vlx.evaluate.tasks.retrieval import ranks
from vlx.evaluate.subject import Subject


@dataclasses.dataclass(frozen=True)
class ZeroShot:
  """Measures `SPLIT/top1` and `SPLIT/top5`, in percent: the class whose prompts fit a picture best.

  The classes are the distinct texts in `field` of the `classes` splits. A class's embedding is the mean of
  its prompts' normalised embeddings; ties are misses.
  """

  splits: tuple[str, ...]
  classes: tuple[str, ...]
  preprocess: str  # must keep "image" and `field`
  text_length: int
  templates: tuple[str, ...]
  batch_size: int = 256
  field: str = "caption"

  def __call__(self, run: Subject, variables, *, draw: bool) -> dict[str, float]:
    del draw
    names = sorted({n for split in self.classes for n in run.source(split).texts((self.field,))})
    classes = embed.texts(run, variables, names, self.text_length, self.batch_size, self.templates)
    measures = {}
    for split in self.splits:
      image, targets = embed.over_split(
          run, variables, split, self.preprocess, "encode_image", ("image",), (self.field,),
          self.batch_size,
      )
      right = np.array(names)[None, :] == targets[self.field][:, None]
      scores = run.system.similarity(jnp.asarray(image), jnp.asarray(classes))
      rank = np.asarray(ranks(scores, jnp.asarray(right, bool)))
      for k in (1, 5):
        measures[f"{split}/top{k}"] = 100 * float(np.mean(rank < k))
    return measures
