"""Best of N: what it gives to sample many images of a caption and to keep the one that a CLIP
prefers.

Ramesh et al., "Zero-Shot Text-to-Image Generation", 2021, §2.6 and Figure 6.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlx.core.capabilities import GeneratesImages
from vlx.evaluate import reference_models
from vlx.evaluate.data import Data
from vlx.evaluate.report import sheets
from vlx.evaluate.results import Results
from vlx.evaluate.tasks.generation import prompts_of, rows_sheet, sample_prompts, with_images
from vlx.model import Model


def best_of(ranking: np.ndarray, values: np.ndarray, n: int) -> float:
  """The value of the image that ranks highest among n: the mean over captions, and over all
  choices of n.

  Of the C(N, n) choices of n among N images, the r-th best (from 0) is the best in C(N − 1 − r, n −
  1).

  Args:
    ranking: `[captions, N]`, more is better.
    values: `[captions, N]`.
    n: at most N.
  """
  count = ranking.shape[1]
  shares = [math.comb(count - 1 - r, n - 1) / math.comb(count, n) for r in range(count)]
  order = np.argsort(-ranking, axis=1, kind="stable")
  return float((np.take_along_axis(values, order, axis=1) @ shares).mean())


@dataclasses.dataclass(frozen=True)
class Reranking:
  """Measures `SPLIT/best_of_N/clip_cosine` and `SPLIT/best_of_N/NAME_accuracy`, N = 1, 2, 4, …
  `samples`.

  `rerank` orders the images and `clip` judges them: a CLIP that did both would be flattered by what
  it is wrong about. `rank_cosine` is the one that orders them by. Plots `reranking`, these curves,
  and `best_SPLIT`, the best eight of all samples beside the real image.
  """

  splits: tuple[str, ...]
  rerank: str  # CLIP runs, or public ones
  clip: str
  classifiers: tuple[str, ...] = ()  # runs
  every: int = 0
  image_transform: str = ""
  prompts: int = 16  # captions of each split, evenly spaced
  samples: int = 64  # of each
  rows: int = 8  # captions that are shown
  sampler: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of the system's own

  requires = (GeneratesImages,)
  better = {"clip_cosine": "higher", "rank_cosine": "higher", "*_accuracy": "higher"}

  def check(self, data: Data, mesh) -> None:
    del data
    reference_models.open_clip(self.rerank, mesh)
    reference_models.open_scorers(self.clip, self.classifiers, mesh)

  def __call__(self, model: Model, data: Data) -> Results:
    ranker = reference_models.open_clip(self.rerank, model.mesh)
    scorers = reference_models.open_scorers(self.clip, self.classifiers, model.mesh)
    sizes = [2**i for i in range(self.samples.bit_length())]
    measures, panels, figures = {}, {}, {}
    for split in self.splits:
      prompts = prompts_of(model, data, split, self.prompts, self.image_transform)
      images = sample_prompts(model, prompts, self.samples, self.sampler)
      records = with_images(prompts.records, images)
      by_caption = lambda x: x.reshape(-1, self.samples)
      ranking = by_caption(ranker.cosines(records))
      for name, values in {"rank_cosine": ranking, **scorers.measure(records)}.items():
        curve = [best_of(ranking, by_caption(values), n) for n in sizes]
        measures |= {f"{split}/best_of_{n}/{name}": value for n, value in zip(sizes, curve)}
        panels.setdefault(name, {})[split] = curve
      order = np.argsort(-ranking, axis=1, kind="stable")
      best = np.take_along_axis(images, order[..., None, None, None], axis=1)
      title = f"{split}: the real image, and the best of {self.samples} samples, best first"
      figures[f"best_{split}"] = rows_sheet(prompts, best, self.rows, title)
    figures["reranking"] = sheets.curves(panels, sizes, "best of", f"ranked by {self.rerank}")
    return Results(measures, figures)
