"""Fields of a record: those that are kept, and labels that are made of what it says."""

from collections.abc import Mapping, Sequence

import numpy as np

from vlx.core.errors import UserError
from vlx.data.records import BadRecord, strings
from vlx.data.tokenizers import Tokenizer
from vlx.data.transforms.ops import Op, op


@op
def skin_tone() -> Op:
  """`label` of an emoji by its `sequence`: 0 without a skin tone, 1 to 5 from light to dark, 6
  with two of them.
  """
  from vlx.data.datasets import emoji  # which imports tensorflow_datasets, and that takes a second

  def apply(example, rng):
    tones = set(emoji.tones_of(example["sequence"]))
    if len(tones) > 1:
      return {**example, "label": 6}
    return {**example, "label": 1 + emoji.TONES.index(*tones) if tones else 0}

  return apply


@op
def keep(*names: str) -> Op:
  """Drops every other field."""

  def apply(example: Mapping, rng):
    if missing := [n for n in names if n not in example]:
      raise UserError(
        f"preprocessing keeps {', '.join(missing)}, but the record has only {', '.join(example)}"
      )
    return {n: example[n] for n in names}

  return apply


@op
def label(*names: str, field: str = "label") -> Op:
  """`label` i32 of a text: its index among the names."""
  places = {name: i for i, name in enumerate(names)}

  def apply(example, rng):
    if example[field] not in places:
      raise BadRecord(f"{field} is {example[field]!r}, which is none of the classes")
    return {**example, "label": np.int32(places[example[field]])}

  return apply


@op
def label_id(tokenizer: Tokenizer, field: str = "label") -> Op:
  """`label` i32 of a text: its index in the run's tokenizer of the kind "labels"."""

  def apply(example, rng):
    found = tokenizer.tokens_of(str(example[field]).strip())
    if len(found) != 1 or found[0] == tokenizer.unknown_id:
      raise BadRecord(f"{field} is {example[field]!r}, which is none of the classes")
    return {**example, "label": np.int32(found[0])}

  return apply


@op
def answers(vocabulary: Sequence[str], field: str = "answers") -> Op:
  """`answer` f32 `[A]`: min(people who gave it / 3, 1) of each answer of the vocabulary (VQA;
  Antol et al., 2015, §5).
  """
  places = {name: i for i, name in enumerate(vocabulary)}

  def apply(example, rng):
    target, given = np.zeros(len(places), np.float32), strings(example[field])
    for answer in given:
      if answer in places:
        # One answer alone is what everybody says.
        target[places[answer]] += 1 / 3 if len(given) > 1 else 1
    return {**example, "answer": np.minimum(target, 1)}

  return apply


@op
def regions(count: int, fields: Sequence[str] = ("boxes",)) -> Op:
  """Fields with a row for each region, cut or filled up with zeros to `count` rows; `region_mask`
  bool `[count]`.

  "boxes" are f32, x1, y1, x2, y2 in [0, 1]; "box_labels" i32; "regions" f32 features,
  "region_labels" f32.
  """

  def apply(example, rng):
    changed = dict(example)
    present = min(count, len(example[fields[0]]))
    for name in fields:
      value = np.asarray(example[name], np.int32 if name == "box_labels" else np.float32)
      padded = np.zeros((count, *value.shape[1:]), value.dtype)
      padded[:present] = value[:present]
      changed[name] = padded
    return {**changed, "region_mask": np.arange(count) < present}

  return apply
