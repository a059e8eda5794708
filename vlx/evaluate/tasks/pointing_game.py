"""Whether a captioner looks at what it names: attention's mass inside the boxes of the named
object.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from vlx.core.capabilities import CaptionsImages, ShowsAttention
from vlx.core.errors import UserError
from vlx.data.datasets.scenes.language import plural
from vlx.evaluate.data import Data
from vlx.evaluate.results import Results
from vlx.model import Model


@dataclasses.dataclass(frozen=True)
class PointingGame:
  """Attention at each noun of the first caption of a scene, the caption given word by word.

  Measures `SPLIT/inside`, the percentage of attention in the boxes of the objects of that name,
  `SPLIT/pointing_accuracy`, how often the likeliest cell is there, and `SPLIT/uniform`, what a look
  at anywhere would have of both.
  """

  splits: tuple[str, ...]
  every: int = 0
  image_transform: str = ""
  count: int = 500
  batch_size: int = 100

  requires = (ShowsAttention, CaptionsImages)
  better = {"inside": "higher", "pointing_accuracy": "higher"}

  def __call__(self, model: Model, data: Data) -> Results:
    measures = {}
    for split in self.splits:
      examples = data.examples(
        split, 'keep("image", "caption", "objects")', image_transform=self.image_transform
      )
      rows = []
      for first in range(0, min(self.count, len(examples)), self.batch_size):
        found = [
          examples(i, None)[1] for i in range(first, min(first + self.batch_size, len(examples)))
        ]
        ids, mask = model.tokenizer.encode_batch(
          [e["caption"][0] for e in found], model.system.text_length
        )
        inputs = {"image": np.stack([e["image"] for e in found]), "text": ids, "text_mask": mask}
        weights = model.map("attention_maps", inputs, batch_size=self.batch_size)
        for example, tokens, maps in zip(found, ids, weights):
          words = [model.tokenizer.decode([token]) for token in tokens]
          rows += _looks(words, maps, example["objects"])
      if not rows:
        raise UserError(f"pointing_game: no caption of {split} names an object of its scene")
      inside, hit, uniform = 100 * np.mean(rows, axis=0)
      measures |= {
        f"{split}/inside": inside,
        f"{split}/pointing_accuracy": hit,
        f"{split}/uniform": uniform,
      }
    return Results(measures)


def _looks(words, maps, objects) -> list[tuple[float, float, float]]:
  """(mass inside, share of the likeliest cell inside, share of all cells inside) for each noun."""
  looks = []
  for word, weights in zip(words, maps):
    boxes = [o["box"] for o in objects if word in (o["name"], plural(o["name"]))]
    if boxes:
      share = covered(boxes, weights.shape)
      # Where the likeliest cell would be, NaN stands first.
      hit = share.flat[weights.argmax()] if np.isfinite(weights).all() else 0.0
      looks.append(((weights * share).sum(), hit, share.mean()))
  return looks


def covered(boxes, shape: tuple[int, int]) -> Float[np.ndarray, "rows columns"]:
  """The share of each cell of a grid that lies in one of some boxes that do not overlap."""
  total = np.zeros(shape)
  for x1, y1, x2, y2 in boxes:
    down, across = (
      np.clip(np.minimum(high * n, np.arange(n) + 1) - np.maximum(low * n, np.arange(n)), 0, None)
      for n, low, high in ((shape[0], y1, y2), (shape[1], x1, x2))
    )
    total += down[:, None] * across
  return total
