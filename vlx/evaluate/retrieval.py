"""Image-text retrieval, both ways."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vlx.evaluate import embed, pictures
from vlx.train.run import Run

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


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """Measures `SPLIT/image_to_text_rK` and `SPLIT/text_to_image_rK`, in percent, K in 1, 5, 10.

  Image → text: every picture of the split against all distinct captions of the `gallery` splits.
  Text → image: every distinct caption of the split against all pictures of the split. A pair is
  relevant if the picture has that caption; ties are misses.
  """

  splits: tuple[str, ...]
  gallery: tuple[str, ...]
  preprocess: str  # must keep "image" and "caption"
  text_length: int
  batch_size: int = 256
  templates: tuple[str, ...] = ("{}",)
  rows: int = 10  # of the sheet of examples

  def __call__(self, run: Run, variables, *, draw: bool) -> dict[str, float]:
    """Measures; with `draw`, also writes `samples/retrieval_SPLIT.png`."""
    captions = sorted({
        caption for split in self.gallery for caption in run.source(split).texts(("caption",))
    })
    column = {caption: i for i, caption in enumerate(captions)}
    text = embed.texts(
        run, variables, captions, self.text_length, self.batch_size, self.templates
    )
    measures = {}
    for split in self.splits:
      image, targets = embed.over_split(
          run, variables, split, self.preprocess, "encode_image", ("image",), ("caption",),
          self.batch_size,
      )
      relevant = np.zeros((len(image), len(captions)), bool)
      for i, caption in enumerate(targets["caption"]):
        for c in (caption,) if isinstance(caption, str) else caption:
          relevant[i, column[c]] = True
      scores = run.system.similarity(jnp.asarray(image), jnp.asarray(text))
      asked = np.flatnonzero(relevant.any(axis=0))
      for direction, s, r in (
          ("image_to_text", scores, relevant),
          ("text_to_image", scores[:, asked].T, relevant[:, asked].T),
      ):
        for name, value in recalls(np.asarray(ranks(s, jnp.asarray(r)))).items():
          measures[f"{split}/{direction}_{name}"] = value
      if draw:
        self._draw(run, split, np.asarray(scores), relevant, captions, asked)
    return measures

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
