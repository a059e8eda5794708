"""Pictures that a system makes of texts, and how likely it finds the real ones."""

import dataclasses
import functools

import jax
import numpy as np

from vlx.evaluate import clip_score, embed, image_metrics, pictures
from vlx.train.run import Run


@dataclasses.dataclass(frozen=True)
class Generation:
  """Measures `SPLIT/image_nats`, the loss of a real picture's code; draws `samples/generation_SPLIT.png`.

  A row of the drawing is a caption: its real picture, then samples. With `clip`, the folder of a CLIP run,
  CLIPScores are measured too where it draws: `clip_score` of the samples, `clip_score_real` of the real
  pictures, `clip_score_shuffled` of the real pictures with one another's captions.
  """

  splits: tuple[str, ...]
  preprocess: str  # must keep "image", "text", "text_mask" and "caption"
  text_length: int
  batch_size: int = 64
  prompts: int = 8
  samples: int = 8
  temperature: float = 1.0
  top_k: int = 0
  guidance_scale: float = 1.0
  clip: str = ""

  def __call__(self, run: Run, variables, *, draw: bool) -> dict[str, float]:
    measures = {}
    for split in self.splits:
      nats, _ = embed.over_split(
          run, variables, split, self.preprocess, "image_nats", ("image", "text", "text_mask"), (),
          self.batch_size,
      )
      measures[f"{split}/image_nats"] = float(nats.mean())
      if draw:
        measures |= {f"{split}/{k}": v for k, v in self._draw(run, variables, split).items()}
    return measures

  def _draw(self, run, variables, split):
    examples = run.examples(split, self.preprocess)
    chosen = np.linspace(0, len(examples) - 1, self.prompts).astype(int)
    shown = [examples(int(i), None)[1] for i in chosen]
    text, text_mask = (np.repeat([e[n] for e in shown], self.samples, axis=0) for n in ("text", "text_mask"))
    images = sample_images(
        run.system, variables, text, text_mask, np.arange(len(text)), temperature=self.temperature,
        top_k=self.top_k, guidance_scale=self.guidance_scale,
    )
    images = images.reshape(self.prompts, self.samples, *images.shape[1:])
    captions, real = [e["caption"] for e in shown], np.stack([e["image"] for e in shown])
    pictures.captioned(
        run.workdir / "samples" / f"generation_{split}.png", captions,
        np.concatenate([real[:, None], images], axis=1),
        f"{split}: the real picture, and samples of its caption",
    )
    if not self.clip:
      return {}
    judge = clip_score.open_judge(self.clip)
    score = lambda images, texts: image_metrics.clip_score(judge(images, texts))
    repeated = [caption for caption in captions for _ in range(self.samples)]
    return {
        "clip_score": score(images.reshape(-1, *images.shape[2:]), repeated),
        "clip_score_real": score(real, captions),
        "clip_score_shuffled": score(real, captions[1:] + captions[:1]),
    }


def sample_images(
    system, variables, text: np.ndarray, text_mask: np.ndarray, seeds: np.ndarray,
    prefix: np.ndarray | None = None,
    *, batch_size: int = 64, **how,
) -> np.ndarray:
  """Pictures `[N, H, W, 3]` in [-1, 1] of prompts `[N, T]`, each by its seed; `how` goes to `generate`."""
  make = _maker(system, tuple(sorted(how.items())))
  made = []
  size = min(batch_size, len(text))
  for first in range(0, len(text), size):
    rows = np.minimum(first + np.arange(size), len(text) - 1)
    part = None if prefix is None else prefix[rows]
    made.append(np.asarray(make(variables, text[rows], text_mask[rows], seeds[rows], part)))
  return np.clip(np.concatenate(made)[: len(text)], -1, 1)


@functools.lru_cache
def _maker(system, how):
  """Compiled once for a system and a way to sample."""

  @jax.jit
  def make(variables, *inputs):
    return system.decode_image(variables, system.generate(variables, *inputs, **dict(how)))

  return make
