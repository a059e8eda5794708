"""How well an image tokenizer gives images back."""

import dataclasses

import numpy as np

from vlx.core.capabilities import Reconstructs, TokenizesImages, has
from vlx.data.records import evenly
from vlx.evaluate import predict
from vlx.evaluate.data import Data
from vlx.evaluate.metrics import images as metrics
from vlx.evaluate.report import sheets
from vlx.evaluate.results import Results
from vlx.model import Model


@dataclasses.dataclass(frozen=True)
class Reconstruction:
  """Measures `SPLIT/psnr`, in dB, the mean over images; `SPLIT/codes_used`, in percent;
  `SPLIT/perplexity`.

  Plots `reconstruction_SPLIT`: images over their reconstructions.
  """

  splits: tuple[str, ...]
  every: int = 0
  image_transform: str = ""
  batch_size: int = 128
  count: int = 12  # images shown

  requires = (Reconstructs,)
  better = {"psnr": "higher", "codes_used": "higher", "perplexity": "higher"}

  def __call__(self, model: Model, data: Data) -> Results:
    measures, figures = {}, {}
    for split in self.splits:
      examples = data.examples(split, 'keep("image")', image_transform=self.image_transform)
      over = lambda method, *targets: predict.predict_examples(
        model, examples, method, ("image",), targets, batch_size=self.batch_size
      )
      made, targets = over("reconstruct", "image")
      images, made = targets["image"], np.clip(made, -1, 1)
      measures[f"{split}/psnr"] = float(metrics.psnr(images, made).mean())
      if has(model.system, TokenizesImages):
        ids, _ = over("image_to_tokens")
        share = np.bincount(ids.ravel(), minlength=model.system.num_codes) / ids.size
        measures[f"{split}/codes_used"] = 100 * float((share > 0).mean())
        measures[f"{split}/perplexity"] = float(
          np.exp(-np.sum(share[share > 0] * np.log(share[share > 0])))
        )
      chosen = evenly(len(images), self.count)
      figures[f"reconstruction_{split}"] = sheets.grid(
        [images[chosen], made[chosen]], f"{split}: images, and their reconstructions"
      )
    return Results(measures, figures)
