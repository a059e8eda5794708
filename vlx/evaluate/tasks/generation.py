"""Pictures that a system makes of texts, and how likely it finds the real ones."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np

from vlx.data.sources import Record
from vlx.evaluate import predict as embed
from vlx.evaluate import reference_models as judges
from vlx.evaluate.report import sheets as pictures
from vlx.train.run import Run


@dataclasses.dataclass(frozen=True)
class Generation:
  """Measures `SPLIT/image_nats`, the loss of a real picture's code; draws `samples/generation_SPLIT.png`.

  A row of the drawing is a caption: its real picture, then samples. Where it draws, the judges that are named
  measure `SPLIT/SET/clip_score` and `SPLIT/SET/NAME_accuracy` (vlx.evaluate.reference_models), all of the same captions:

    samples        pictures drawn of the captions
    real           their real pictures
    reconstructed  these, as the tokenizer gives them back: no sample can be expected to be better
    shuffled       the real pictures, each with another one's caption
    nearest        the picture of `nearest_in` that is nearest to each sample, by the CLIP's features

  The last takes a CLIP and `nearest_in`. With it comes `nearest_cosine` of `samples` and of `real` pictures,
  each with the nearest of that split, itself excepted: samples that are copies are nearer than real ones are.
  Draws `samples/nearest_SPLIT.png`, samples over their nearest.
  """

  splits: tuple[str, ...]
  preprocess: str  # must keep "image", "text", "text_mask" and "caption"
  text_length: int
  batch_size: int = 64
  prompts: int = 8  # captions of each split, evenly spaced
  samples: int = 8  # of each
  rows: int = 8  # captions that are drawn
  temperature: float = 1.0
  top_k: int = 0
  guidance_scale: float = 1.0
  clip: str = ""  # a CLIP run or a public one
  classifiers: tuple[str, ...] = ()  # runs
  nearest_in: str = ""  # a split, all of which is embedded

  def __call__(self, run: Run, variables, *, draw: bool) -> dict[str, float]:
    panel = judges.open_panel(self.clip, self.classifiers, run.mesh) if draw else None
    measures = {}
    for split in self.splits:
      nats, _ = embed.over_split(
          run, variables, split, self.preprocess, "image_nats", ("image", "text", "text_mask"), (),
          self.batch_size,
      )
      measures[f"{split}/image_nats"] = float(nats.mean())
      if draw:
        prompts = prompts_of(run, split, self.preprocess, self.prompts)
        images = sample_prompts(
            run.system, variables, prompts, self.samples, temperature=self.temperature, top_k=self.top_k,
            guidance_scale=self.guidance_scale,
        )
        draw_rows(
            run, f"generation_{split}", prompts, images, self.rows,
            f"{split}: the real picture, and samples of its caption",
        )
        if self.clip or self.classifiers:
          judged = self._judge(run, variables, split, prompts, images, panel)
          measures |= {f"{split}/{name}": value for name, value in judged.items()}
    return measures

  def _judge(self, run, variables, split, prompts, images, panel) -> dict[str, float]:
    records = prompts.records
    real = np.stack([e["image"] for e in prompts.examples])
    sets = {
        "samples": drawn_records(records, images),
        "real": records,
        "reconstructed": drawn_records(records, reconstruct(run.system, variables, real)[:, None]),
        "shuffled": [{**r, "image": other["image"]} for r, other in zip(records, records[1:] + records[:1])],
    }
    measures = {}
    if panel.clip and self.nearest_in:
      cosines, found = self._nearest(run, split, sets, prompts.indices, panel.clip)
      measures |= {f"{name}/nearest_cosine": float(x.mean()) for name, x in cosines.items()}
      source = run.source(self.nearest_in)
      sets["nearest"] = [{**r, "image": source[int(i)]["image"]} for r, i in zip(sets["samples"], found)]
      self._draw_nearest(run, split, images, found)
    for name, judged in sets.items():
      measures |= {f"{name}/{k}": float(x.mean()) for k, x in panel.measure(judged).items()}
    return measures

  def _nearest(self, run, split, sets, indices, clip) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(cosines of the samples and the real pictures with what is nearest to each, where that is of the samples)."""
    known = judges.unit(clip.features(run.source(self.nearest_in)))
    cosines = {name: judges.unit(clip.features(sets[name])) @ known.T for name in ("samples", "real")}
    if split == self.nearest_in:
      cosines["real"][np.arange(len(indices)), indices] = -1
    return {name: x.max(axis=1) for name, x in cosines.items()}, cosines["samples"].argmax(axis=1)

  def _draw_nearest(self, run, split, images, found):
    """The first sample of each caption over what is nearest to it."""
    examples = run.examples(self.nearest_in, self.preprocess)
    shown = images[: 2 * self.rows, 0]
    pictures.grid(
        run.workdir / "samples" / f"nearest_{split}.png",
        [shown, [examples(int(i), None)[1]["image"] for i in found[:: self.samples][: len(shown)]]],
        f"{split}: samples, and the pictures of {self.nearest_in} that are nearest to them",
    )


class Prompts(NamedTuple):
  """Captions of a split, with their pictures."""

  indices: np.ndarray
  records: list[Record]
  examples: list[dict]


def prompts_of(run: Run, split: str, preprocess: str, count: int) -> Prompts:
  """`count` of the split, evenly spaced; all where there are fewer."""
  source, examples = run.source(split), run.examples(split, preprocess)
  indices = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
  return Prompts(indices, [source[int(i)] for i in indices], [examples(int(i), None)[1] for i in indices])


def sample_prompts(system, variables, prompts: Prompts, samples: int, **how) -> np.ndarray:
  """`[prompts, samples, H, W, 3]` in [-1, 1]; `how` as of `sample_images`."""
  text, text_mask = (
      np.repeat([e[name] for e in prompts.examples], samples, axis=0) for name in ("text", "text_mask")
  )
  images = sample_images(system, variables, text, text_mask, np.arange(len(text)), **how)
  return images.reshape(-1, samples, *images.shape[1:])


def drawn_records(records: list[Record], images: np.ndarray) -> list[Record]:
  """Each record with each of its pictures, `images` being `[records, samples, H, W, 3]`, in this order."""
  return [judges.with_picture(record, image) for record, row in zip(records, images) for image in row]


def draw_rows(run: Run, name: str, prompts: Prompts, images: np.ndarray, rows: int, title: str) -> None:
  """`samples/NAME.png`: captions with their real pictures and the first eight of `[prompts, samples, H, W, 3]`."""
  chosen = np.linspace(0, len(images) - 1, min(rows, len(images))).astype(int)
  real = np.stack([prompts.examples[i]["image"] for i in chosen])
  pictures.captioned(
      run.workdir / "samples" / f"{name}.png", [prompts.examples[i]["caption"] for i in chosen],
      np.concatenate([real[:, None], images[chosen, :8]], axis=1), title,
  )


def sample_images(
    system, variables, text: np.ndarray, text_mask: np.ndarray, seeds: np.ndarray,
    prefix: np.ndarray | None = None,
    *, batch_size: int = 64, **how,
) -> np.ndarray:
  """Pictures `[N, H, W, 3]` in [-1, 1] of prompts `[N, T]`, each by its seed; `how` goes to `generate`."""
  make = functools.partial(_maker(system, tuple(sorted(how.items()))), variables)
  inputs = (text, text_mask, seeds) if prefix is None else (text, text_mask, seeds, prefix)
  return _in_batches(make, batch_size, *inputs)


@functools.lru_cache
def _maker(system, how):
  """Compiled once for a system and a way to sample."""

  @jax.jit
  def make(variables, *inputs):
    return system.decode_image(variables, system.generate(variables, *inputs, **dict(how)))

  return make


def reconstruct(system, variables, images: np.ndarray, *, batch_size: int = 64) -> np.ndarray:
  """What the codes of pictures `[N, H, W, 3]` in [-1, 1] keep of them."""
  return _in_batches(functools.partial(_reconstructed, system, variables), batch_size, images)


@functools.partial(jax.jit, static_argnums=0)
def _reconstructed(system, variables, images):
  return system.decode_image(variables, system.encode_image(variables, images))


def _in_batches(make, batch_size: int, *inputs: np.ndarray) -> np.ndarray:
  """Pictures made of the rows of `inputs`; the last batch is filled up with copies of its last row."""
  count = len(inputs[0])
  size = min(batch_size, count)
  made = []
  for first in range(0, count, size):
    rows = np.minimum(first + np.arange(size), count - 1)
    made.append(np.asarray(make(*(x[rows] for x in inputs))))
  return np.clip(np.concatenate(made)[:count], -1, 1)
