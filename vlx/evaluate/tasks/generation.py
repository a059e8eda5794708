"""Images that a system samples, and what other models say of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vlx.core.capabilities import GeneratesImages, Reconstructs, has
from vlx.data.images import to_png
from vlx.data.records import Record, evenly, strings
from vlx.evaluate import reference_models
from vlx.evaluate.data import Data
from vlx.evaluate.report import sheets
from vlx.evaluate.results import Results
from vlx.model import Model


@dataclasses.dataclass(frozen=True)
class Generation:
  """Plots `generation_SPLIT`: a row is a caption, its real image, then samples.

  The reference models that are named measure `SPLIT/SET/clip_cosine` and `SPLIT/SET/NAME_accuracy`
  (vlx.evaluate.reference_models), all of the same captions:

    samples        images sampled of the captions
    real           their real images
    reconstructed  these, as the system gives them back, where it does: no sample can be expected to be better
    shuffled       the real images, each with another one's caption
    nearest        the image of `nearest_in` that is nearest to each sample, by the CLIP's features

  Of the first two also `border`, the mean of an image's outermost pixels, 0 black to 1 white: a background that should
  be white is gray in samples of some diffusion models.

  The last takes a CLIP and `nearest_in`. With it comes `nearest_cosine` of `samples` and of `real`
  images, each with the nearest of that split, itself excepted: samples that are copies are nearer
  than real ones are. Plots `nearest_SPLIT`, samples over their nearest.
  """

  splits: tuple[str, ...]
  every: int = 0
  image_transform: str = ""
  prompts: int = 8  # captions of each split, evenly spaced
  samples: int = 8  # of each
  rows: int = 8  # captions that are shown
  sampler: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of the system's own
  clip: str = ""  # a CLIP run or a public one
  classifiers: tuple[str, ...] = ()  # runs
  nearest_in: str = ""  # a split, all of which is embedded

  requires = (GeneratesImages,)
  better = {"clip_cosine": "higher", "*_accuracy": "higher", "nearest_cosine": "lower"}

  def check(self, data: Data, mesh) -> None:
    del data
    reference_models.open_scorers(self.clip, self.classifiers, mesh)

  def __call__(self, model: Model, data: Data) -> Results:
    scorers = reference_models.open_scorers(self.clip, self.classifiers, model.mesh)
    measures, figures = {}, {}
    for split in self.splits:
      prompts = prompts_of(model, data, split, self.prompts, self.image_transform)
      images = sample_prompts(model, prompts, self.samples, self.sampler)
      of = " of its caption" if "text" in prompts.names else ""
      title = f"{split}: the real image, and samples{of}"
      figures[f"generation_{split}"] = rows_sheet(prompts, images, self.rows, title)
      real = np.stack([e["image"] for e in prompts.examples])
      measures[f"{split}/samples/border"], measures[f"{split}/real/border"] = map(
        border, (images, real)
      )
      if self.clip or self.classifiers:
        found, sheet = self._score(model, data, split, prompts, images, scorers)
        measures |= {f"{split}/{name}": value for name, value in found.items()}
        figures |= sheet
    return Results(measures, figures)

  def _score(self, model, data, split, prompts, images, scorers):
    records, figures, measures = prompts.records, {}, {}
    sets = {
      "samples": with_images(records, images),
      "real": records,
      "shuffled": [
        {**r, "image": other["image"]} for r, other in zip(records, records[1:] + records[:1])
      ],
    }
    if has(model.system, Reconstructs):
      made = model.map("reconstruct", np.stack([e["image"] for e in prompts.examples]))
      sets["reconstructed"] = with_images(records, made[:, None])
    if scorers.clip and self.nearest_in:
      cosines, found = self._nearest(data, split, sets, prompts.indices, scorers.clip)
      measures |= {f"{name}/nearest_cosine": float(x.mean()) for name, x in cosines.items()}
      source = data.source(self.nearest_in)
      sets["nearest"] = [
        {**r, "image": source[int(i)]["image"]} for r, i in zip(sets["samples"], found)
      ]
      figures[f"nearest_{split}"] = self._nearest_sheet(data, split, images, found)
    for name, scored in sets.items():
      measures |= {f"{name}/{k}": float(x.mean()) for k, x in scorers.measure(scored).items()}
    return measures, figures

  def _nearest(self, data, split, sets, indices, clip) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(cosines of the samples and the real images with what is nearest to each, where that is of the samples)."""
    known = reference_models.unit(clip.features(data.source(self.nearest_in)))
    cosines = {
      name: reference_models.unit(clip.features(sets[name])) @ known.T
      for name in ("samples", "real")
    }
    if split == self.nearest_in:
      cosines["real"][np.arange(len(indices)), indices] = -1
    return {name: x.max(axis=1) for name, x in cosines.items()}, cosines["samples"].argmax(axis=1)

  def _nearest_sheet(self, data, split, images, found):
    """The first sample of each caption over what is nearest to it."""
    examples = data.examples(self.nearest_in, image_transform=self.image_transform)
    shown = images[: 2 * self.rows, 0]
    nearest = [examples(int(i), None)[1]["image"] for i in found[:: self.samples][: len(shown)]]
    title = f"{split}: samples, and the images of {self.nearest_in} that are nearest to them"
    return sheets.grid([shown, nearest], title)


def border(images: np.ndarray) -> float:
  """The mean of the outermost pixels of `[…, H, W, 3]` in [-1, 1], as a number in 0 … 1."""
  outermost = np.ones(images.shape[-3:-1], bool)
  outermost[1:-1, 1:-1] = False
  return float((images[..., outermost, :].mean() + 1) / 2)


class Prompts(NamedTuple):
  """Records of a split as what samples are asked for."""

  indices: np.ndarray
  records: list[Record]
  examples: list[dict]  # with `image`, as the model takes it, and what it samples from
  names: tuple[str, ...]  # of the latter


def prompts_of(
  model: Model, data: Data, split: str, count: int, image_transform: str = ""
) -> Prompts:
  """`count` of a split, evenly spaced; all where there are fewer. A text is the record's (first)
  caption.
  """
  wanted = model.system.sample_inputs()
  length = wanted["text"].shape[0] if "text" in wanted else 0
  ops = ('choose("caption")', f'tokenize("caption", {length})') if length else ()
  examples = data.examples(split, *ops, image_transform=image_transform)
  used, found = zip(*(examples(i, None) for i in evenly(len(examples), count)))
  source = data.source(split)
  records = [{**source[i], "caption": strings(source[i].get("caption", ""))[0]} for i in used]
  return Prompts(np.array(used), records, list(found), tuple(wanted))


def sample_prompts(
  model: Model, prompts: Prompts, samples: int, sampler: Mapping[str, Any]
) -> np.ndarray:
  """`[prompts, samples, H, W, 3]` in [-1, 1], each by a seed of its own."""
  inputs = {
    name: np.repeat(np.stack([e[name] for e in prompts.examples]), samples, axis=0)
    for name in prompts.names
  }
  seeds = np.arange(len(prompts.examples) * samples, dtype=np.int32)
  images = model.map("sample_images", inputs, seeds, sampler=model.sampler(**sampler))
  return np.clip(images, -1, 1).reshape(-1, samples, *images.shape[1:])


def with_images(records: list[Record], images: np.ndarray) -> list[Record]:
  """Each record with each of its images, `images` being `[records, samples, H, W, 3]`, in this
  order.
  """
  return [
    {**record, "image": to_png(image)} for record, row in zip(records, images) for image in row
  ]


def rows_sheet(prompts: Prompts, images: np.ndarray, rows: int, title: str):
  """Captions with their real images and the first eight of `[prompts, samples, H, W, 3]`."""
  chosen = evenly(len(images), rows)
  real = np.stack([prompts.examples[i]["image"] for i in chosen])
  said = lambda record: record["caption"] if "text" in prompts.names else ""
  return sheets.captioned(
    [said(prompts.records[i]) for i in chosen],
    [[image, *made] for image, made in zip(real, images[chosen, :8])],
    title,
  )
