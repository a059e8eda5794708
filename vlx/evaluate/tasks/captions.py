"""Captions of whole splits: made, measured, laid beneath their pictures; those of nearest neighbours."""

import dataclasses
import logging
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vlx.data.datasets.scenes import truth as scenes_truth
from vlx.data.datasets.scenes.source import ScenesSource
from vlx.data.sources import strings
from vlx.evaluate.metrics import captions as metrics
from vlx.evaluate import predict as embed
from vlx.evaluate.report import sheets as pictures
from vlx.train.run import Run


def measure(
    candidates: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str,
    scenes: ScenesSource | None = None,
) -> dict[str, float]:
  """What `Captions` measures of one split.

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
  """Measures `SPLIT/…` of a system's captions, against all of a picture's captions.

  `bleu1` … `bleu4`, `rouge_l`, `cider_d`, `meteor` where Java is, times 100; `equal`, the percentage of
  captions that are one of the references; of scenes also what is true of them
  (`vlx.data.datasets.scenes.truth.measures`).
  """

  splits: tuple[str, ...]
  preprocess: str  # must keep "image" and "caption"
  tokenizer: str  # "words" or "ptb"
  beam_size: int
  max_length: int
  length_penalty: float = 0.0
  batch_size: int = 64
  pictures: int = 20  # on the sheet of examples

  def __call__(self, run: Run, variables, *, draw: bool) -> dict[str, float]:
    """Measures; with `draw`, also writes `samples/captions_SPLIT.png`."""
    measures = {}
    for split in self.splits:
      (ids, _), targets = embed.over_split(
          run, variables, split, self.preprocess, "caption", ("image",), ("caption",), self.batch_size,
          beam_size=self.beam_size, max_length=self.max_length, length_penalty=self.length_penalty,
      )
      made = [run.tokenizer.decode(best) for best in ids[:, 0]]
      references = [strings(c) for c in targets["caption"]]
      measures |= _of_split(run, split, made, references, self.tokenizer)
      if draw:
        self._draw(run, split, made, references)
    return measures

  def _draw(self, run, split, made, references):
    examples = run.examples(split, pictures.before_normalize(self.preprocess))
    chosen = np.linspace(0, len(made) - 1, min(self.pictures, len(made))).astype(int).tolist()
    pictures.captions_sheet(
        run.workdir / "samples" / f"captions_{split}.png",
        [(examples(i, None)[1]["image"], made[i], references[i][0]) for i in chosen],
        f"{split}: captions by a beam of {self.beam_size}; in gray a reference",
    )


def _of_split(run, split, made, references, tokenizer) -> dict[str, float]:
  if not metrics.has_java_parts():
    logging.warning("METEOR is left out: it needs %s", metrics.JAVA_PARTS)
  source = run.source(split)
  scenes = source if isinstance(source, ScenesSource) else None
  return {f"{split}/{k}": v for k, v in measure(made, references, tokenizer, scenes).items()}


@dataclasses.dataclass(frozen=True)
class NearestNeighbour:
  """Measures `SPLIT/…` as `Captions`, of captions that are those of the training pictures most alike.

  Alike to a CLIP, the run's system: what a captioner should do better than.
  """

  splits: tuple[str, ...]
  preprocess: str  # must keep "image" and "caption"
  tokenizer: str  # "words" or "ptb"
  k: int = 1
  batch_size: int = 64

  def __call__(self, run: Run, variables, *, draw: bool) -> dict[str, float]:
    del draw

    def features(split):
      x, targets = embed.over_split(
          run, variables, split, self.preprocess, "encode_image", ("image",), ("caption",), self.batch_size
      )
      return x, [strings(c) for c in targets["caption"]]

    measures, (bank, known) = {}, features("train")
    for split in self.splits:
      queries, references = features(split)
      made = nearest_neighbour(queries, bank, known, self.k)
      measures |= _of_split(run, split, made, references, self.tokenizer)
    return measures


def nearest_neighbour(
    features: Float[np.ndarray, "queries dim"], bank: Float[np.ndarray, "pictures dim"],
    captions: Sequence[Sequence[str]], k: int = 1,
) -> list[str]:
  """Captions of others: of those of the k pictures most alike, the one most like the rest of these.

  Devlin et al., "Exploring Nearest Neighbor Approaches for Image Captioning", 2015: likeness of captions
  is CIDEr. Of captions equally good the first is taken, so a single one needs no choosing.

  Args:
    features: of the pictures to be captioned, of any scale: the cosine decides.
    bank: of the pictures whose captions are known.
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
        sum(cider.similarity(a, b) for j, b in enumerate(vectors) if j != i) for i, a in enumerate(vectors)
    ]
    found.append([text for i in nearest for text in captions[i]][int(np.argmax(likeness))])
  return found
