"""Where a system looks: figures, no measures."""

import dataclasses

import numpy as np

from vlx.core.capabilities import ShowsAttention
from vlx.data.records import evenly, strings
from vlx.evaluate.data import Data
from vlx.evaluate.report import sheets
from vlx.evaluate.results import Results
from vlx.model import Model


@dataclasses.dataclass(frozen=True)
class Attention:
  """Plots `attention_SPLIT`: images, and the same under the rollout of attention."""

  splits: tuple[str, ...]
  every: int = 0
  image_transform: str = ""
  count: int = 10

  requires = (ShowsAttention,)
  better = {}

  def __call__(self, model: Model, data: Data) -> Results:
    figures = {}
    for split in self.splits:
      examples = data.examples(
        split, 'keep("image", "caption")', image_transform=self.image_transform
      )
      plain = data.to_look_at(split, self.image_transform)
      # A record that cannot be used has its neighbour's place in both.
      chosen = [examples(i, None) for i in evenly(len(examples), self.count)]
      inputs = {"image": np.stack([e["image"] for _, e in chosen])}
      maps = model.map("attention_maps", inputs, batch_size=self.count)
      figures[f"attention_{split}"] = sheets.attention_sheet(
        [
          (plain(used, None)[1]["image"], m, strings(e["caption"])[0])
          for (used, e), m in zip(chosen, maps)
        ],
        f"{split}: what the image tower attends to (rollout over all layers)",
      )
    return Results({}, figures)
