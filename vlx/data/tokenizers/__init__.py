"""Texts to ids and back: one protocol for byte-level BPE, WordPiece, SentencePiece and whole
words.
"""

import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vlx.core.config import import_path, nearest
from vlx.core.errors import UserError
from vlx.data.tokenizers import public, rust, trained

# Ids and which of them are real: i32 and bool, `[length]`.
Encoded = tuple[np.ndarray, np.ndarray]


class Tokenizer(Protocol):
  """Turns texts into ids and back. Can be pickled."""

  vocab_size: int  # one more than the largest id
  start_id: int | None
  end_id: int | None
  stop_ids: tuple[int, ...]  # any of them ends a generated text
  has_chat: bool

  def tokens(self, text: str) -> list[int]:
    """All ids of a text, special ones and all."""

  def tokens_of(self, text: str) -> list[int]:
    """Ids of a text inside of another, without special ones."""

  def encode(
    self, text: str, length: int, *, dropout: float = 0.0, rng: np.random.Generator | None = None
  ) -> Encoded:
    """The text, with its special tokens, and zeros under a False mask behind; what is too long
    loses its end.

    `dropout` is BPE's, of merges.
    """

  def encode_pair(
    self, first: str, second: str, length: int
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two texts one after another, and i32 `[length]` of segments: 0 for the first, 1 for the
    second.

    What is too long loses the last tokens of the longer text.
    """

  def encode_batch(self, texts: Sequence[str], length: int) -> Encoded:
    """`[N, length]` each."""

  def decode(self, ids: Iterable[int]) -> str:
    """The text of ids, without special tokens; ids that are no words are passed over."""

  def save(self, path: pathlib.Path) -> None:
    """One file, which `load` reads."""


def load(path: pathlib.Path) -> Tokenizer:
  """A tokenizer that `Tokenizer.save` wrote.

  Raises:
    UserError: where the file is damaged, or none of vlx's.
  """
  what = f"{path} is no tokenizer of vlx's, or damaged"
  with rust.told(what):
    content = json.loads(path.read_text("utf-8"))
    return (
      public.from_saved(content, what) if "backend" in content else trained.from_json(content, what)
    )


def make(section: Mapping[str, Any], texts: Callable[[], Iterable[str]]) -> Tokenizer:
  """The tokenizer of a config's `tokenizer` section.

  `kind` is "bpe", learned from texts, or CLIP's where `vocabulary` names its file or folder; "words", the frequent ones
  of texts; "labels", whole texts, the names
  of classes; "public", of the folder or file of a public checkpoint, in `path`; or the import path of a function
  (section, texts) → `Tokenizer`. (Of "parts" `vlx.train.initialize.tokenizer_of_parts` makes it.)

  Args:
    section: of the config.
    texts: those of the training split.

  Raises:
    UserError: for another kind, and for what the kinds say of themselves.
  """
  kind = section.get("kind", "bpe")
  kinds = {
    "bpe": lambda: (
      trained.load_clip(section["vocabulary"])
      if section.get("vocabulary")
      else trained.train_bpe(texts(), section["vocab_size"])
    ),
    "words": lambda: trained.train_word_level(texts(), section["vocab_size"], section["min_count"]),
    "labels": lambda: trained.collect_labels(texts(), section["vocab_size"]),
    "public": lambda: _public(section["path"]),
  }
  if "." in kind:
    return import_path(kind)(section, texts)
  if kind not in kinds:
    raise UserError(f"no tokenizer.kind {kind!r}: {nearest(kind, kinds)}")
  return kinds[kind]()


def _public(path: str) -> Tokenizer:
  found = public.load(pathlib.Path(path).expanduser())
  if found is None:
    raise UserError(f"tokenizer.path: {path} has no tokenizer that vlx reads")
  return found
