"""The BERT on scenes, whose objects are its regions; what it reads of them and how it is
measured stand here.
"""

import dataclasses

import numpy as np

from vlx.core.capabilities import ScoresPairs
from vlx.core.config import finalize
from vlx.data.datasets.scenes import sprites
from vlx.evaluate import predict
from vlx.evaluate.results import Results
from vlx.train import defaults

NOUNS, COLORS = sprites.ALL_NOUNS, ("", *sprites.COLORS)
REGIONS = (
  "tests.new_systems.regions.config.regions_of_objects|"
  'regions(4, ("boxes", "regions", "box_labels"))|choose("caption")|tokenize("caption", 16)'
)
KEEP = 'keep("text", "text_mask", "regions", "boxes", "region_mask", "box_labels")'


def regions_of_objects():
  """An op: a scene's objects as a detector would give them, a color's place and a size for
  features.
  """

  def apply(example, rng):
    objects = example["objects"]
    features = [[*(color == o["color"] for color in COLORS), o["size"] == "big"] for o in objects]
    return {
      **example,
      "boxes": [o["box"] for o in objects],
      "regions": np.float32(features),
      "box_labels": [NOUNS.index(o["name"]) for o in objects],
    }

  return apply


@dataclasses.dataclass(frozen=True)
class Matching:
  """Measures `SPLIT/right`, how often in percent a text fits its own regions better than the
  next record's.
  """

  splits: tuple[str, ...]
  every: int = 0

  requires = (ScoresPairs,)
  better = {"right": "higher"}

  def __call__(self, model, data):
    names = ("text", "text_mask", "regions", "boxes", "region_mask")
    measures = {}
    for split in self.splits:
      examples = data.examples(split, KEEP, image_transform=REGIONS)
      own, found = predict.predict_examples(
        model, examples, "pair_scores", names, names, batch_size=8, as_inputs=True
      )
      swapped = {n: np.roll(x, 1, axis=0) if "text" not in n else x for n, x in found.items()}
      measures[f"{split}/right"] = 100 * float(np.mean(own > model.map("pair_scores", swapped)))
    return Results(measures)


def get_config():
  config = defaults.get_config()
  config.system = "tests.new_systems.regions.model.RegionBERT"
  config.model = dict(
    vocab_size=300,
    num_classes=len(NOUNS),
    text_length=16,
    num_regions=4,
    region_dim=len(COLORS) + 1,
  )
  config.data.update(
    dict(source="scenes:64?size=16&held_out=16", batch_size=16, preprocess=f"{REGIONS}|{KEEP}")
  )
  config.tokenizer = dict(kind="words", min_count=1, vocab_size=300, fields=("caption",))
  config.optim.update(dict(lr=1e-3, schedule="constant"))
  config.evaluators = dict(
    matching=dict(type="tests.new_systems.regions.config.Matching", splits=("val",), every=2)
  )
  return finalize(config)
