"""Captions of whole splits: made, measured, laid beneath their images; those of nearest
neighbours.
"""

import dataclasses
import logging
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vlx.core.capabilities import CaptionsImages, EmbedsImages
from vlx.data.datasets.scenes import truth as scenes_truth
from vlx.data.datasets.scenes.source import ScenesSource
from vlx.data.records import Source, evenly, strings
from vlx.evaluate import predict, reference_models
from vlx.evaluate.data import Data
from vlx.evaluate.metrics import captions as metrics
from vlx.evaluate.reference_models import ReferenceModel, unit
from vlx.evaluate.report import sheets
from vlx.evaluate.results import Results
from vlx.inference.decoding import Search
from vlx.model import Model


def measure(
  candidates: Sequence[str],
  references: Sequence[Sequence[str]],
  tokenizer: str,
  scenes: ScenesSource | None = None,
) -> dict[str, float]:
  """The measures that `Captions` takes of one split.

  Args:
    candidates: a caption for each record.
    references: its true captions.
    tokenizer: "words" or "ptb" (`vlx.evaluate.metrics.captions`).
    scenes: the records' source, if they are scenes.
  """
  values = metrics.measures(candidates, references, tokenizer)
  words = [metrics.tokenize([c, *refs], "words") for c, refs in zip(candidates, references)]
  values["equal"] = 100 * float(np.mean([said in true for said, *true in words]))
  if scenes is not None:
    counts = [scenes_truth.compare(c, scenes.scene(i)) for i, c in enumerate(candidates)]
    values |= scenes_truth.measures(counts)
  return values


@dataclasses.dataclass(frozen=True)
class Captions:
  """Measures `SPLIT/…` of a system's captions, against all of an image's captions.

  `bleu1` … `bleu4`, `rouge_l`, `cider_d`, `meteor` where Java is, times 100; `equal`, the percentage of
  captions that are one of the references; of scenes also what is true of them
  (`vlx.data.datasets.scenes.truth.measures`). With a `clip` also `clip_score` and `ref_clip_score`,
  times 100.
  """

  splits: tuple[str, ...]
  tokenizer: str  # "words" or "ptb"
  beam_size: int
  max_length: int
  length_penalty: float = 0.0  # α, and its form (vlx.inference.decoding.Search)
  length_norm: str = "gnmt"
  every: int = 0
  image_transform: str = ""
  batch_size: int = 64
  shown: int = 20  # on the sheet of examples
  clip: str = ""  # a run, or a public one

  requires = (CaptionsImages,)
  better = {"invented": "lower", "*": "higher"}

  def check(self, data: Data, mesh) -> None:
    """The words of references must split as asked: "ptb" needs Java. The CLIP must be there."""
    del data
    metrics.check_tokenizer(self.tokenizer)
    if self.clip:
      reference_models.open_clip(self.clip, mesh)

  def __call__(self, model: Model, data: Data) -> Results:
    """Measures, and plots `captions_SPLIT`."""
    search = Search(self.beam_size, self.max_length, self.length_penalty, self.length_norm)
    measures, figures = {}, {}
    for split in self.splits:
      examples = data.examples(
        split, 'keep("image", "caption")', image_transform=self.image_transform
      )
      (ids, _), targets = predict.predict_examples(
        model,
        examples,
        "caption",
        ("image",),
        ("caption",),
        batch_size=self.batch_size,
        as_inputs=True,
        search=search,
      )
      made = [model.tokenizer.decode(best) for best in ids[:, 0]]
      references = [strings(c) for c in targets["caption"]]
      measures |= _of_split(data, split, made, references, self.tokenizer)
      if self.clip:
        clip = reference_models.open_clip(self.clip, model.mesh)
        scores = clip_scores(clip, data.source(split), made, references)
        measures |= {f"{split}/{name}": 100 * float(x.mean()) for name, x in scores.items()}
      plain = data.to_look_at(split, self.image_transform)
      figures[f"captions_{split}"] = sheets.captions_sheet(
        [
          (plain(i, None)[1]["image"], made[i], references[i][0])
          for i in evenly(len(made), self.shown)
        ],
        f"{split}: captions by a beam of {self.beam_size}; in gray a reference",
      )
    return Results(measures, figures)


def clip_scores(
  clip: ReferenceModel, source: Source, made: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, np.ndarray]:
  """`clip_score` and `ref_clip_score`, `[N]`, of a caption of each of the source's records."""
  prompted = lambda texts: clip.texts([metrics.CLIP_PROMPT + text for text in texts])
  said = prompted(made)
  images = unit(clip.features([source[i] for i in range(len(made))]))
  cosines = (images * said).sum(axis=-1)
  counts = [len(refs) for refs in references]
  known = np.split(prompted([r for refs in references for r in refs]), np.cumsum(counts)[:-1])
  nearest = np.array([(refs @ text).max() for refs, text in zip(known, said)])
  return {
    "clip_score": metrics.clip_score(cosines),
    "ref_clip_score": metrics.ref_clip_score(cosines, nearest),
  }


def _of_split(data, split, made, references, tokenizer) -> dict[str, float]:
  if not metrics.has_java_parts():
    logging.warning("METEOR is left out: it needs %s", metrics.JAVA_PARTS)
  source = data.source(split)
  scenes = source if isinstance(source, ScenesSource) else None
  return {f"{split}/{k}": v for k, v in measure(made, references, tokenizer, scenes).items()}


@dataclasses.dataclass(frozen=True)
class NearestNeighbour:
  """Measures `SPLIT/…` as `Captions`, of captions that are those of the training images most alike.

  Alike to the run's system: what a captioner should do better than.
  """

  splits: tuple[str, ...]
  tokenizer: str  # "words" or "ptb"
  k: int = 1
  every: int = 0
  image_transform: str = ""
  batch_size: int = 64

  requires = (EmbedsImages,)
  better = {"invented": "lower", "*": "higher"}

  def __call__(self, model: Model, data: Data) -> Results:
    def features(split):
      examples = data.examples(
        split, 'keep("image", "caption")', image_transform=self.image_transform
      )
      x, targets = predict.predict_examples(
        model, examples, "embed_image", ("image",), ("caption",), batch_size=self.batch_size
      )
      return x, [strings(c) for c in targets["caption"]]

    measures, (bank, known) = {}, features("train")
    for split in self.splits:
      queries, references = features(split)
      made = nearest_neighbour(queries, bank, known, self.k)
      measures |= _of_split(data, split, made, references, self.tokenizer)
    return Results(measures)


def nearest_neighbour(
  features: Float[np.ndarray, "queries dim"],
  bank: Float[np.ndarray, "images dim"],
  captions: Sequence[Sequence[str]],
  k: int = 1,
) -> list[str]:
  """Captions of others: of those of the k images most alike, the one most like the rest of these.

  Devlin et al., "Exploring Nearest Neighbor Approaches for Image Captioning", 2015: likeness of
  captions is CIDEr. Of captions equally good the first is taken, so a single one needs no choosing.

  Args:
    features: of the images to be captioned, of any scale: the cosine decides.
    bank: of the images whose captions are known.
    captions: of the bank.
    k: how many neighbours.
  """
  unit = lambda x: jnp.asarray(x) / jnp.linalg.norm(jnp.asarray(x), axis=-1, keepdims=True)
  queries, known = unit(features), unit(bank)
  tokens = [metrics.tokenize(texts, "words") for texts in captions]
  cider = metrics.CiderD(tokens)
  found = []
  for query in queries:
    nearest = np.argsort(-np.asarray(known @ query), kind="stable")[:k].tolist()
    vectors = [cider.vectors(t) for i in nearest for t in tokens[i]]
    likeness = [
      sum(cider.similarity(a, b) for j, b in enumerate(vectors) if j != i)
      for i, a in enumerate(vectors)
    ]
    found.append([text for i in nearest for text in captions[i]][int(np.argmax(likeness))])
  return found
