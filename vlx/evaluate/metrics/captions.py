"""Metrics of captions against several references, as COCO's evaluation defines them.

BLEU (Papineni et al., 2002), ROUGE-L (Lin, 2004), CIDEr-D (Vedantam et al., 2015): the values of
pycocoevalcap 1.2, on equal tokens. METEOR (Denkowski and Lavie, 2014) and the PTB tokenizer, both
Java, are that package's own: used where it (`pip install --no-deps pycocoevalcap`, 100 MB) and Java
are installed.

Figures of different tokenizers are not to be compared. "ptb" is that of published ones; "words"
takes runs of letters and digits, in lower case, and differs where there are apostrophes, hyphens
and abbreviations.

A text is a list of tokens here; candidates and lists of references go together.
"""

import importlib.util
import math
import re
import shutil
from collections import Counter
from collections.abc import Sequence

import numpy as np

from vlx.core.errors import UserError

Tokens = list[str]
ORDERS = (1, 2, 3, 4)
TOKENIZERS = ("words", "ptb")
JAVA_PARTS = "Java and `pip install --no-deps pycocoevalcap`"


def has_java_parts() -> bool:
  """Whether METEOR and the PTB tokenizer can be had."""
  return bool(shutil.which("java") and importlib.util.find_spec("pycocoevalcap"))


def check_tokenizer(tokenizer: str) -> None:
  """Raises `UserError` for a tokenizer that there is not, or "ptb" where it cannot be had."""
  if tokenizer not in TOKENIZERS:
    raise UserError(f"a tokenizer of captions is one of {', '.join(TOKENIZERS)}, not {tokenizer!r}")
  if tokenizer == "ptb" and not has_java_parts():
    raise UserError(f"the tokenizer 'ptb' needs {JAVA_PARTS}; 'words' needs neither")


def tokenize(texts: Sequence[str], tokenizer: str) -> list[Tokens]:
  """Texts without case and punctuation, by "words" or "ptb".

  Raises:
    UserError: for another tokenizer, or "ptb" where it cannot be had.
  """
  check_tokenizer(tokenizer)
  if tokenizer == "words":
    return [re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower()) for text in texts]
  from pycocoevalcap.tokenizer import ptbtokenizer

  # One line each, and none of them empty; the full stop is taken out again.
  lines = [{"caption": " ".join(text.split()) or "."} for text in texts]
  return [line.split() for line in ptbtokenizer.PTBTokenizer().tokenize({0: lines})[0]]


def ngrams(tokens: Tokens, order: int) -> Counter:
  return Counter(zip(*(tokens[i:] for i in range(order))))


def bleu(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
  """BLEU-1 … BLEU-4 of the whole set, in [0, 1].

  Brevity is measured against the reference of the nearest length (of two, the shorter).
  """
  right, guessed = [0] * 4, [0] * 4
  length = nearest = 0
  for candidate, refs in zip(candidates, references):
    length += len(candidate)
    nearest += min((abs(len(r) - len(candidate)), len(r)) for r in refs)[1]
    for k, order in enumerate(ORDERS):
      most = Counter()
      for ref in refs:
        most |= ngrams(ref, order)
      right[k] += (ngrams(candidate, order) & most).total()
      guessed[k] += max(0, len(candidate) - order + 1)
  # The reference's constants against division by zero.
  ratio = (length + 1e-15) / (nearest + 1e-9)
  brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
  product, values = 1.0, []
  for k, order in enumerate(ORDERS):
    product *= (right[k] + 1e-15) / (guessed[k] + 1e-9)
    values.append(product ** (1 / order) * brevity)
  return values


def rouge_l(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
  """Mean over captions of the F-measure (beta 1.2) of longest common subsequences, in [0, 1].

  Precision and recall are each of the reference where it is highest.
  """
  beta, scores = 1.2, []
  for candidate, refs in zip(candidates, references):
    common = [_common_length(candidate, r) for r in refs]
    precision = max(common) / max(len(candidate), 1)
    recall = max(c / max(len(r), 1) for c, r in zip(common, refs))
    both = (1 + beta**2) * precision * recall / (recall + beta**2 * precision) if precision else 0.0
    scores.append(both)
  return sum(scores) / len(scores)


def _common_length(a: Tokens, b: Tokens) -> int:
  """Length of the longest common subsequence."""
  row = [0] * (len(b) + 1)
  for x in a:
    before = 0  # row[j - 1] of the line above
    for j, y in enumerate(b, 1):
      before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
  return row[-1]


class CiderD:
  """CIDEr-D with the document frequencies of a set of references; σ = 6.

  Args:
    references: of each image. An n-gram's weight falls with the number of images that have it, so
      values of sets of different sizes are not to be compared.
  """

  def __init__(self, references: Sequence[Sequence[Tokens]]):
    self._images_with = Counter()
    for refs in references:
      self._images_with.update({g for r in refs for order in ORDERS for g in ngrams(r, order)})
    self._log_count = math.log(len(references))

  def vectors(self, tokens: Tokens) -> tuple[list[dict], list[float], int]:
    """(weight of each n-gram, by order; their norms; length), to be given to `similarity`."""
    weights = [
      {
        g: count * (self._log_count - math.log(max(1, self._images_with[g])))
        for g, count in ngrams(tokens, order).items()
      }
      for order in ORDERS
    ]
    norms = [math.sqrt(sum(w * w for w in part.values())) for part in weights]
    return weights, norms, max(0, len(tokens) - 1)  # the reference code's length: of bigrams

  def similarity(self, candidate, reference) -> float:
    """The similarity of two texts by their `vectors`."""
    total = 0.0
    for own, other, own_norm, other_norm in zip(
      candidate[0], reference[0], candidate[1], reference[1]
    ):
      if own_norm and other_norm:
        overlap = sum(min(w, other[g]) * other[g] for g, w in own.items() if g in other)
        total += overlap / (own_norm * other_norm)
    difference = candidate[2] - reference[2]
    return 10 * total / len(ORDERS) * math.exp(-(difference**2) / (2 * 6.0**2))

  def __call__(self, candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """Mean over captions of the mean similarity to the references, in [0, 10]."""
    scores = []
    for candidate, refs in zip(candidates, references):
      own = self.vectors(candidate)
      scores.append(sum(self.similarity(own, self.vectors(r)) for r in refs) / len(refs))
    return sum(scores) / len(scores)


def meteor(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
  """METEOR 1.5 of the whole set, in [0, 1]; asks for `has_java_parts()`."""
  from pycocoevalcap.meteor import meteor as package

  join = " ".join
  said = {i: [join(c)] for i, c in enumerate(candidates)}
  true = {i: [join(r) for r in refs] for i, refs in enumerate(references)}
  return package.Meteor().compute_score(true, said)[0]


def measures(
  candidates: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str
) -> dict[str, float]:
  """`bleu1` … `bleu4`, `rouge_l`, `cider_d`, where Java is `meteor`, times 100 as papers print
  them.
  """
  said = tokenize(candidates, tokenizer)
  flat = iter(tokenize([r for refs in references for r in refs], tokenizer))
  true = [[next(flat) for _ in refs] for refs in references]
  values = {f"bleu{n}": v for n, v in zip(ORDERS, bleu(said, true))}
  values |= {"rouge_l": rouge_l(said, true), "cider_d": CiderD(true)(said, true)}
  if has_java_parts():
    values["meteor"] = meteor(said, true)
  return {name: 100 * value for name, value in values.items()}


# Before candidates and references alike (Hessel et al., 2021, §3).
CLIP_PROMPT = "A photo depicts "


def clip_score(image_cosines: np.ndarray) -> np.ndarray:
  """2.5 · max(cos(image, caption), 0) of each (Hessel et al., "CLIPScore", 2021, eq. 1).

  With embeddings of `CLIP_PROMPT` and the caption. Comparable for one CLIP alone; the paper's is
  ViT-B/32.
  """
  return 2.5 * np.maximum(image_cosines, 0)


def ref_clip_score(image_cosines: np.ndarray, reference_cosines: np.ndarray) -> np.ndarray:
  """Harmonic mean of `clip_score` and max(cos(caption, nearest reference), 0) (§3); 0 where either
  is.
  """
  score, near = clip_score(image_cosines), np.maximum(reference_cosines, 0)
  return 2 * score * near / np.where(score + near > 0, score + near, 1)
