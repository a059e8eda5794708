"""Best of N: what it gives to draw many pictures of a caption and to keep the one that a CLIP prefers.

Ramesh et al., "Zero-Shot Text-to-Image Generation", 2021, §2.6 and Figure 6.
"""

import dataclasses
import math

import numpy as np

from vlx.evaluate import reference_models as judges
from vlx.evaluate.report import sheets as pictures
from vlx.evaluate.tasks.generation import draw_rows, drawn_records, prompts_of, sample_prompts
from vlx.train.run import Run


def best_of(ranking: np.ndarray, values: np.ndarray, n: int) -> float:
  """Of the picture that ranks highest among n, the value: the mean over captions, and over all choices of n.

  Of the C(N, n) choices of n among N pictures, the r-th best (from 0) is the best in C(N − 1 − r, n − 1).

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
  """Measures `SPLIT/best_of_N/clip_score` and `SPLIT/best_of_N/NAME_accuracy`, N = 1, 2, 4, … `samples`.

  `rerank` orders the pictures and `clip` judges them: a CLIP that did both would be flattered by what it is
  wrong about. `rank_cosine` is the one that orders them by. Draws `samples/reranking.png`, these curves, and
  `samples/best_SPLIT.png`, the best eight of all samples beside the real picture. All of it only where samples
  are drawn.
  """

  splits: tuple[str, ...]
  preprocess: str  # must keep "image", "text", "text_mask" and "caption"
  rerank: str  # CLIP runs, or public ones
  clip: str
  classifiers: tuple[str, ...] = ()  # runs
  prompts: int = 16  # captions of each split, evenly spaced
  samples: int = 64  # of each
  rows: int = 8  # captions that are drawn
  temperature: float = 1.0
  top_k: int = 0
  guidance_scale: float = 1.0

  def __call__(self, run: Run, variables, *, draw: bool) -> dict[str, float]:
    if not draw:
      return {}
    ranker = judges.open_clip(self.rerank, run.mesh)
    panel = judges.open_panel(self.clip, self.classifiers, run.mesh)
    sizes = [2**i for i in range(self.samples.bit_length())]
    measures, panels = {}, {}
    for split in self.splits:
      prompts = prompts_of(run, split, self.preprocess, self.prompts)
      images = sample_prompts(
          run.system, variables, prompts, self.samples, temperature=self.temperature, top_k=self.top_k,
          guidance_scale=self.guidance_scale,
      )
      records = drawn_records(prompts.records, images)
      by_caption = lambda x: x.reshape(-1, self.samples)
      ranking = by_caption(ranker.cosines(records))
      for name, values in {"rank_cosine": ranking, **panel.measure(records)}.items():
        curve = [best_of(ranking, by_caption(values), n) for n in sizes]
        measures |= {f"{split}/best_of_{n}/{name}": value for n, value in zip(sizes, curve)}
        panels.setdefault(name, {})[split] = curve
      order = np.argsort(-ranking, axis=1, kind="stable")
      draw_rows(
          run, f"best_{split}", prompts, np.take_along_axis(images, order[..., None, None, None], axis=1),
          self.rows, f"{split}: the real picture, and the best of {self.samples} samples, best first",
      )
    pictures.curves(
        run.workdir / "samples" / "reranking.png", panels, sizes, "best of", f"ranked by {self.rerank}"
    )
    return measures
