"""How a set of made images compares with the real ones, in the features of another network."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlx.core.capabilities import GeneratesImages, Reconstructs, has
from vlx.core.errors import UserError
from vlx.evaluate import reference_models
from vlx.evaluate.data import Data
from vlx.evaluate.metrics import images as metrics
from vlx.evaluate.results import Results
from vlx.evaluate.tasks.generation import prompts_of, sample_prompts, with_images
from vlx.model import Model


@dataclasses.dataclass(frozen=True)
class Fidelity:
  """Measures `SPLIT/SET/fid`, `kid`, and in percent `precision` and `recall`
  (vlx.evaluate.metrics.images).

  Of two sets: `samples`, one of each record; `reconstructed`, where the system does that, the real
  images as it gives them back, which is as good as samples can be. Figures are comparable for one
  `features` and one number of images alone: they are not the Inception FID of papers.
  """

  splits: tuple[str, ...]
  features: str  # a run or a public checkpoint: CLIP's embeddings, a classifier's pooled features
  every: int = 0
  image_transform: str = ""
  count: int = 1000  # images of each split, evenly spaced; all where there are fewer
  sampler: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of the system's own

  requires = (GeneratesImages,)
  better = {"fid": "lower", "kid": "lower", "precision": "higher", "recall": "higher"}

  def check(self, data: Data, mesh) -> None:
    del data
    reference_models.open_features(self.features, mesh)

  def __call__(self, model: Model, data: Data) -> Results:
    reference = reference_models.open_features(self.features, model.mesh)
    measures = {}
    for split in self.splits:
      prompts = prompts_of(model, data, split, self.count, self.image_transform)
      if len(prompts.records) <= metrics.NEIGHBOURS:
        raise UserError(
          f"{len(prompts.records)} images of {split}; fidelity takes more than {metrics.NEIGHBOURS}"
        )
      real = reference.features(prompts.records)
      sets = {"samples": sample_prompts(model, prompts, 1, self.sampler)}
      if has(model.system, Reconstructs):
        sets["reconstructed"] = model.map(
          "reconstruct", np.stack([e["image"] for e in prompts.examples])
        )[:, None]
      for name, made in sets.items():
        found = compare(real, reference.features(with_images(prompts.records, made)))
        measures |= {f"{split}/{name}/{measure}": value for measure, value in found.items()}
    return Results(measures)


def compare(real: np.ndarray, made: np.ndarray) -> dict[str, float]:
  """All measures of features `[N, D]`."""
  precision, recall = metrics.precision_recall(real, made)
  return {
    "fid": metrics.fid(real, made),
    "kid": metrics.kid(real, made),
    "precision": 100 * precision,
    "recall": 100 * recall,
  }
