"""How a set of made pictures compares with the real ones, in the features of another network."""

import dataclasses

import numpy as np

from vlx.evaluate.metrics import images as image_metrics
from vlx.evaluate import reference_models as judges
from vlx.evaluate.tasks.generation import drawn_records, prompts_of, reconstruct, sample_prompts
from vlx.train.run import Run


@dataclasses.dataclass(frozen=True)
class Fidelity:
  """Measures `SPLIT/SET/fid`, `kid`, and in percent `precision` and `recall` (vlx.evaluate.metrics.images).

  Of two sets: `samples`, one of each caption, where the system draws captions; `reconstructed`, the real
  pictures as their codes give them back, which is as good as samples can be. Figures are comparable for one
  `features` and one number of pictures alone: they are not the Inception FID of papers. All of it only where
  samples are drawn.
  """

  splits: tuple[str, ...]
  preprocess: str  # must keep "image", and "text" and "text_mask" where captions are drawn
  features: str  # a run or a public checkpoint: CLIP's embeddings, a classifier's pooled features
  count: int = 1000  # pictures of each split, evenly spaced; all where there are fewer
  temperature: float = 1.0
  top_k: int = 0
  guidance_scale: float = 1.0

  def __call__(self, run: Run, variables, *, draw: bool) -> dict[str, float]:
    if not draw:
      return {}
    judge = judges.open_features(self.features, run.mesh)
    measures = {}
    for split in self.splits:
      prompts = prompts_of(run, split, self.preprocess, self.count)
      real = judge.features(prompts.records)
      images = np.stack([e["image"] for e in prompts.examples])
      sets = {"reconstructed": reconstruct(run.system, variables, images)[:, None]}
      if hasattr(run.system, "generate"):
        sets["samples"] = sample_prompts(
            run.system, variables, prompts, 1, temperature=self.temperature, top_k=self.top_k,
            guidance_scale=self.guidance_scale,
        )
      for name, made in sets.items():
        found = compare(real, judge.features(drawn_records(prompts.records, made)))
        measures |= {f"{split}/{name}/{measure}": value for measure, value in found.items()}
    return measures


def compare(real: np.ndarray, made: np.ndarray) -> dict[str, float]:
  """All measures of features `[N, D]`."""
  precision, recall = image_metrics.precision_recall(real, made)
  return {
      "fid": image_metrics.fid(real, made), "kid": image_metrics.kid(real, made),
      "precision": 100 * precision, "recall": 100 * recall,
  }
