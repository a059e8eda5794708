"""Image-text retrieval, both ways."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vlx.core.capabilities import EmbedsImages, EmbedsText
from vlx.data.records import evenly, strings
from vlx.evaluate import predict
from vlx.evaluate.data import Data
from vlx.evaluate.report import sheets
from vlx.evaluate.results import Results
from vlx.model import Model, similarity

RECALLS = (1, 5, 10)


def ranks(
  scores: Float[Array, "queries candidates"], relevant: Bool[Array, "queries candidates"]
) -> Int[Array, " queries"]:
  """How many irrelevant candidates score at least as high as the best relevant one.

  0 is a hit at the top. Ties count against the query, so a model that says the same of everything
  finds nothing; and so do scores that are no numbers.
  """
  best = jnp.where(relevant, scores, -jnp.inf).max(axis=1, keepdims=True)
  above = (~(scores < best) & ~relevant).sum(axis=1)
  return jnp.where(jnp.isfinite(best[:, 0]), above, scores.shape[1])


def recalls(ranks_: np.ndarray) -> dict[str, float]:
  """R@1, R@5, R@10 in percent."""
  return {f"r{k}": 100 * float(np.mean(ranks_ < k)) for k in RECALLS}


def prior(bank: Float[Array, "queries candidates"], scale: float) -> Float[Array, " candidates"]:
  """How much of everything each candidate attracts: (1/scale) log mean exp(scale · score) over a
  bank.

  A score minus this is the inverted softmax (Smith et al., 2017); with training queries as the bank
  it is QB-Norm (Bogolin et al., "Cross Modal Retrieval with Querybank Normalisation", 2022).
  """
  return (jax.nn.logsumexp(scale * bank, axis=0) - jnp.log(len(bank))) / scale


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """Measures `SPLIT/image_to_text_rK` and `SPLIT/text_to_image_rK`, in percent, K in 1, 5, 10.

  Image → text: every image of the split against all distinct captions of the `gallery` splits.
  Text → image: every distinct caption of the split against all images of the split. A pair is
  relevant if the image has that caption; ties are misses.

  With a `bank`, a split whose images are known, a caption's `prior` by them is taken off its
  scores, image → text alone: a caption that was trained must outdo how well it fits its own
  training images.
  """

  splits: tuple[str, ...]
  gallery: tuple[str, ...]
  every: int = 0
  image_transform: str = ""
  batch_size: int = 256
  templates: tuple[str, ...] = ("{}",)
  bank: str = ""
  bank_scale: float = 20.0  # "inverse temperature" of the paper
  rows: int = 10  # of the sheet of examples

  requires = (EmbedsImages, EmbedsText)
  better = {"*_to_*_r*": "higher"}

  def __call__(self, model: Model, data: Data) -> Results:
    """Measures; without a bank, also plots `retrieval_SPLIT`."""
    captions = sorted(
      {caption for split in self.gallery for caption in data.source(split).texts(("caption",))}
    )
    column = {caption: i for i, caption in enumerate(captions)}
    text = predict.texts(model, captions, batch_size=self.batch_size, templates=self.templates)
    known = 0.0
    if self.bank:
      image, _ = self._images(model, data, self.bank)
      known = prior(similarity(model.system, image, text), self.bank_scale)
    measures, figures = {}, {}
    for split in self.splits:
      image, targets = self._images(model, data, split)
      relevant = np.zeros((len(image), len(captions)), bool)
      for i, caption in enumerate(targets["caption"]):
        for c in strings(caption):
          relevant[i, column[c]] = True
      scores = similarity(model.system, image, text)
      asked = np.flatnonzero(relevant.any(axis=0))
      for direction, s, r in (
        ("image_to_text", scores - known, relevant),
        ("text_to_image", scores[:, asked].T, relevant[:, asked].T),
      ):
        for name, value in recalls(np.asarray(ranks(s, jnp.asarray(r)))).items():
          measures[f"{split}/{direction}_{name}"] = value
      if not self.bank:
        sheet = self._sheet(data, split, np.asarray(scores), relevant, captions, asked)
        figures[f"retrieval_{split}"] = sheet
    return Results(measures, figures)

  def _images(self, model, data, split):
    examples = data.examples(
      split, 'keep("image", "caption")', image_transform=self.image_transform
    )
    return predict.predict_examples(
      model, examples, "embed_image", ("image",), ("caption",), batch_size=self.batch_size
    )

  def _sheet(self, data, split, scores, relevant, captions, asked):
    """Captions of the split, each with the five images that fit best."""
    examples = data.to_look_at(split, self.image_transform)
    rows = []
    for q in asked[evenly(len(asked), self.rows)]:
      best = np.argsort(-scores[:, q], kind="stable")[:5]
      found = [(examples(int(i), None)[1]["image"], bool(relevant[i, q])) for i in best]
      rows.append((captions[q], found))
    return sheets.retrieval_sheet(
      rows, f"{split}: captions and the five images nearest to them, right ones framed"
    )
