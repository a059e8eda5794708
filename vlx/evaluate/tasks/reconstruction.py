"""What a tokenizer of pictures keeps of them."""

import dataclasses

import numpy as np

from vlx.evaluate import predict as embed
from vlx.evaluate.metrics import images as image_metrics
from vlx.evaluate.report import sheets as pictures
from vlx.train.run import Run


@dataclasses.dataclass(frozen=True)
class Reconstruction:
  """Measures `SPLIT/psnr`, in dB, the mean over pictures; `SPLIT/codes_used`, in percent; `SPLIT/perplexity`.

  Draws `samples/reconstruction_SPLIT.png`: pictures over their reconstructions.
  """

  splits: tuple[str, ...]
  preprocess: str  # must keep "image" alone
  batch_size: int = 128
  count: int = 12  # drawn

  def __call__(self, run: Run, variables, *, draw: bool) -> dict[str, float]:
    measures = {}
    for split in self.splits:
      over = lambda method, *targets: embed.over_split(
          run, variables, split, self.preprocess, method, ("image",), targets, self.batch_size
      )
      made, targets = over("reconstruct", "image")
      images, made = targets["image"], np.clip(made, -1, 1)
      ids, _ = over("encode_image")
      share = np.bincount(ids.ravel(), minlength=run.system.num_codes) / ids.size
      measures[f"{split}/psnr"] = float(image_metrics.psnr(images, made).mean())
      measures[f"{split}/codes_used"] = 100 * float((share > 0).mean())
      measures[f"{split}/perplexity"] = float(np.exp(-np.sum(share[share > 0] * np.log(share[share > 0]))))
      if draw:
        chosen = np.linspace(0, len(images) - 1, min(self.count, len(images))).astype(int)
        pictures.grid(
            run.workdir / "samples" / f"reconstruction_{split}.png",
            [images[chosen], made[chosen]], f"{split}: pictures, and what their codes keep of them",
        )
    return measures
