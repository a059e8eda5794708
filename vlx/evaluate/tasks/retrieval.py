"""Image-text retrieval, both ways."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vlx.data.sources import strings
from vlx.evaluate import predict as embed
from vlx.evaluate.report import sheets as pictures
from vlx.evaluate.subject import Subject

RECALLS = (1, 5, 10)


def ranks(
    scores: Float[Array, "queries candidates"], relevant: Bool[Array, "queries candidates"]
) -> Int[Array, "queries"]:
  """How many irrelevant candidates score at least as high as the best relevant one.

  0 is a hit at the top. Ties count against the query, so a model that says the same of everything
  finds nothing.
  """
  best = jnp.where(relevant, scores, -jnp.inf).max(axis=1, keepdims=True)
  return ((scores >= best) & ~relevant).sum(axis=1)


def recalls(ranks_: np.ndarray) -> dict[str, float]:
  """R@1, R@5, R@10 in percent."""
  return {f"r{k}": 100 * float(np.mean(ranks_ < k)) for k in RECALLS}


def prior(
    bank: Float[Array, "queries candidates"], scale: float
) -> Float[Array, "candidates"]:
  """How much of everything each candidate attracts: (1/scale) log mean exp(scale · score) over a bank.

  A score minus this is the inverted softmax (Smith et al., 2017); with training queries as the bank it is
  QB-Norm (Bogolin et al., "Cross Modal Retrieval with Querybank Normalisation", 2022).
  """
  return (jax.nn.logsumexp(scale * bank, axis=0) - jnp.log(len(bank))) / scale


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """Measures `SPLIT/image_to_text_rK` and `SPLIT/text_to_image_rK`, in percent, K in 1, 5, 10.

  Image → text: every picture of the split against all distinct captions of the `gallery` splits.
  Text → image: every distinct caption of the split against all pictures of the split. A pair is
  relevant if the picture has that caption; ties are misses.

  With a `bank`, a split whose pictures are known, a caption's `prior` by them is taken off its scores,
  image → text alone: a caption that was trained must outdo how well it fits its own training pictures.
  """

  splits: tuple[str, ...]
  gallery: tuple[str, ...]
  preprocess: str  # must keep "image" and "caption"
  text_length: int
  batch_size: int = 256
  templates: tuple[str, ...] = ("{}",)
  bank: str = ""
  bank_scale: float = 20.0  # "inverse temperature" of the paper
  rows: int = 10  # of the sheet of examples

  def __call__(self, run: Subject, variables, *, draw: bool) -> dict[str, float]:
    """Measures; with `draw` and no bank, also writes `samples/retrieval_SPLIT.png`."""
    captions = sorted({
        caption for split in self.gallery for caption in run.source(split).texts(("caption",))
    })
    column = {caption: i for i, caption in enumerate(captions)}
    text = embed.texts(
        run, variables, captions, self.text_length, self.batch_size, self.templates
    )
    known = 0.0
    if self.bank:
      image, _ = self._images(run, variables, self.bank)
      known = prior(run.system.similarity(jnp.asarray(image), jnp.asarray(text)), self.bank_scale)
    measures = {}
    for split in self.splits:
      image, targets = self._images(run, variables, split)
      relevant = np.zeros((len(image), len(captions)), bool)
      for i, caption in enumerate(targets["caption"]):
        for c in strings(caption):
          relevant[i, column[c]] = True
      scores = run.system.similarity(jnp.asarray(image), jnp.asarray(text))
      asked = np.flatnonzero(relevant.any(axis=0))
      for direction, s, r in (
          ("image_to_text", scores - known, relevant),
          ("text_to_image", scores[:, asked].T, relevant[:, asked].T),
      ):
        for name, value in recalls(np.asarray(ranks(s, jnp.asarray(r)))).items():
          measures[f"{split}/{direction}_{name}"] = value
      if draw and not self.bank:
        self._draw(run, split, np.asarray(scores), relevant, captions, asked)
    return measures

  def _images(self, run, variables, split):
    return embed.over_split(
        run, variables, split, self.preprocess, "encode_image", ("image",), ("caption",),
        self.batch_size,
    )

  def _draw(self, run, split, scores, relevant, captions, asked):
    """Captions of the split, each with the five pictures that fit best."""
    queries = asked[np.linspace(0, len(asked) - 1, min(self.rows, len(asked))).astype(int)]
    examples = run.examples(split, pictures.before_normalize(self.preprocess))
    rows = []
    for q in queries:
      best = np.argsort(-scores[:, q], kind="stable")[:5]
      found = [(examples(int(i), None)[1]["image"], bool(relevant[i, q])) for i in best]
      rows.append((captions[q], found))
    pictures.retrieval_sheet(
        run.workdir / "samples" / f"retrieval_{split}.png", rows,
        f"{split}: captions and the five pictures nearest to them, right ones framed",
    )
