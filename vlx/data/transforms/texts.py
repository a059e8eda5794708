"""Texts: which of many, in which words, as which ids."""

import numpy as np

from vlx.data.records import BadRecord, check_text
from vlx.data.tokenizers import Tokenizer
from vlx.data.tokenizers.trained import clean
from vlx.data.transforms.ops import Op, is_random, op


@op
def choose(field: str = "caption") -> Op:
  """One of the field's texts at random, where it has many; in evaluation the first."""

  def apply(example, rng):
    texts = example.get(field, ())
    if isinstance(texts, str):
      return example
    texts = [text for text in texts if _says_something(text)]
    if not texts:
      raise BadRecord(f"{field} is empty")
    if not is_random(rng):
      return {**example, field: texts[0]}
    return {**example, field: texts[rng.integers(len(texts))]}

  return apply


@op
def template(*templates: str, field: str = "caption") -> Op:
  """Puts the text into one of the templates, "{}" standing for it."""

  def apply(example, rng):
    return {**example, field: templates[rng.integers(len(templates))].format(example[field])}

  return apply


@op
def tokenize(
  field: str, length: int, tokenizer: Tokenizer, dropout: float = 0.0, into: str = "text"
) -> Op:
  """The text in `field` → ids i32 `[length]` in `text` (`into`) and bool `[length]` in `text_mask`.

  A record whose text is empty is a bad one. `dropout` is BPE's, of merges.
  """

  nothing = len(tokenizer.tokens(""))

  def apply(example, rng):
    text = _text(example, field)
    ids, mask = tokenizer.encode(text, length, dropout=dropout, rng=rng)
    if mask.sum() <= nothing:
      raise BadRecord(f"{field} {text!r} has no word that the tokenizer knows")
    return {**example, into: ids, f"{into}_mask": mask}

  return apply


@op
def tokenize_pair(first: str, second: str, length: int, tokenizer: Tokenizer) -> Op:
  """Two fields, one behind the other → `text`, `text_mask`, and i32 `segments`: 0 in the first,
  1 in the second.
  """

  def apply(example, rng):
    ids, mask, segments = tokenizer.encode_pair(
      _text(example, first), _text(example, second), length
    )
    return {**example, "text": ids, "text_mask": mask, "segments": segments}

  return apply


@op
def tokenize_answer(
  length: int, tokenizer: Tokenizer, question: str = "question", answer: str = "answer"
) -> Op:
  """A question and the answer behind it → `text`, `text_mask`, and `target_mask`, True on the
  answer and its end.

  What is too long loses the question's first tokens, all but the start: the answer is what is
  learned.
  """

  def apply(example, rng):
    turns = [("user", _text(example, question)), ("assistant", _text(example, answer))]
    said = _dialogue(turns, tokenizer, None, 1)
    return {**example, **_arrays(said[:1] + said[1:][1 - length :], length)}

  return apply


ROLES = {
  "human": "user",
  "gpt": "assistant",
  "user": "user",
  "assistant": "assistant",
  "system": "system",
}
IMAGE = "<image>"  # where an image stands in a message, in LLaVA's files


@op
def conversation(
  length: int,
  tokenizer: Tokenizer,
  field: str = "conversations",
  image_id: int | None = None,
  image_tokens: int = 1,
) -> Op:
  """Turns {"from": "human" or "gpt", "value": …} → `text`, `text_mask`, and `target_mask` on the
  assistant's turns.

  Args:
    length: of the arrays; what is too long loses its end.
    tokenizer: whose chat template is used, where it has one.
    field: of the turns.
    image_id: the id that stands for "<image>" in a message, so many times over; without one the
      word is dropped.
    image_tokens: see there.
  """

  def apply(example, rng):
    turns = example.get(field)
    try:
      said = [(ROLES[turn["from"]], turn["value"]) for turn in turns]
      if not all(isinstance(text, str) for _, text in said):
        raise TypeError("a value is no text")
    except (KeyError, TypeError) as e:
      why = f"{type(e).__name__} {str(e)[:80]}"
      raise BadRecord(f"{field} is no list of {{from: human or gpt, value: …}}: {why}") from e
    for _, text in said:
      check_text(text)
    if not any(role == "assistant" and text.strip() for role, text in said):
      raise BadRecord("the assistant says nothing")
    return {
      **example,
      **_arrays(_dialogue(said, tokenizer, image_id, image_tokens)[:length], length),
    }

  return apply


def _dialogue(turns, tokenizer, image_id, image_tokens) -> list[tuple[int, bool]]:
  """(id, whether it is a target) of a dialogue's tokens.

  By the template, a turn's tokens are those by which it makes the rendering longer. Without one a
  turn is its text, as `tokens` encodes it without its last token where that is the end, and an end
  behind each answer.
  """
  said, rendered = [], []
  expand = lambda new: (
    new
    if image_id is None
    else expand_images(new, tokenizer.tokens_of(IMAGE), image_id, image_tokens)
  )
  for count, (role, text) in enumerate(turns, 1):
    text = text if image_id is not None else text.replace(IMAGE, "").strip()
    if tokenizer.has_chat:
      messages = [{"role": r, "content": t} for r, t in turns[:count]]
      whole = tokenizer.chat_ids(messages, answering=role != "assistant")
      # a template that says something else once there are more turns
      if whole[: len(rendered)] != rendered:
        raise BadRecord("the chat template does not render a conversation turn by turn")
      new, rendered = whole[len(rendered) :], whole
    else:
      new = tokenizer.tokens(text)
      ends = tokenizer.end_id is not None
      new = new[1:] if said and new and new[0] == tokenizer.start_id else new
      new = new[:-1] if ends and new and new[-1] == tokenizer.end_id else new
      new = [*new, tokenizer.end_id] if ends and role == "assistant" else new
    said += [(i, role == "assistant") for i in expand(new)]
  return said


def _arrays(said: list[tuple[int, bool]], length: int) -> dict[str, np.ndarray]:
  """The output of `_dialogue`, padded with zeros."""
  ids, targets = zip(*said) if said else ((), ())
  text, target_mask = np.zeros(length, np.int32), np.zeros(length, bool)
  text[: len(ids)], target_mask[: len(ids)] = ids, targets
  return {"text": text, "text_mask": np.arange(length) < len(ids), "target_mask": target_mask}


def expand_images(ids: list[int], marker: list[int], image_id: int, count: int) -> list[int]:
  """The ids with each run of `marker`, the tokens of "<image>", replaced by `count` times the
  image's.
  """
  out, i = [], 0
  while i < len(ids):
    here = ids[i : i + len(marker)] == marker
    out += [image_id] * count if here else [ids[i]]
    i += len(marker) if here else 1
  return out


def _says_something(text: str) -> bool:
  """Whether cleaning leaves anything; it is slow, and letters outside of codes stay."""
  coded = "&" in text or "\x1b" in text
  return bool(clean(text)) if coded else any(map(str.isalnum, text)) or bool(clean(text))


def _text(example, field: str) -> str:
  """The field's text, of which there is some."""
  text = example.get(field)
  if not isinstance(text, str) or not text.strip():
    raise BadRecord(f"{field} is empty")
  check_text(text)
  return text
