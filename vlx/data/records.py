"""Records: what sources give and preprocessing takes."""

import json
import pathlib
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from vlx.core.errors import UserError

Record = dict[str, Any]


class BadRecord(Exception):
  """A record that cannot be used; the next readable one takes its place."""


class Source(Protocol):
  """Random access to records; equal indices give equal records, whoever asks. Can be pickled."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record: ...

  def name(self, index: int) -> str:
    """The name of a record in messages."""

  def texts(self, fields: Sequence[str]) -> Iterator[str]:
    """All strings of these fields, without reading images where that can be avoided."""


def strings(value: str | Sequence[str]) -> Sequence[str]:
  """A field's strings, one or many."""
  return (value,) if isinstance(value, str) else value


MAX_TEXT = 100_000  # characters of a text; a novel's chapter is shorter
MAX_FILE = 2**28  # bytes of an image
MAX_NAME = 4096  # letters of a file's path, as Linux has them


def parse_object(text: str | bytes) -> Record:
  """A JSON object from its text.

  Raises:
    BadRecord: where it is another thing.
  """
  try:
    row = json.loads(text)
  except (ValueError, RecursionError) as e:
    raise BadRecord(f"not a JSON object in UTF-8: {e}") from e
  if not isinstance(row, dict):
    raise BadRecord("not a JSON object")
  return row


def check_text(text: str) -> None:
  """Raises `BadRecord` for a text that no tokenizer should be given."""
  if len(text) > MAX_TEXT:
    raise BadRecord(f"a text of {len(text)} characters; {MAX_TEXT} are the most")
  try:
    text.encode()
  except UnicodeEncodeError as e:  # half a surrogate pair
    raise BadRecord("a text that is not UTF-8") from e


def captions(value: Any) -> str | tuple[str, ...]:
  """A caption, or of several those that are not empty.

  Raises:
    BadRecord: where none is left, or one is no text that can be trained.
  """
  several = isinstance(value, (list, tuple))
  texts = tuple(value) if several else (value,)
  for text in texts:
    if not isinstance(text, str):
      raise BadRecord(f"no caption: {type(text).__name__} {str(text)[:40]}")
    check_text(text)
  texts = tuple(text for text in texts if text.strip())
  if not texts:
    raise BadRecord("no caption")
  return texts if several else texts[0]


def read_file(root: pathlib.Path, name: str) -> bytes:
  """A record's file, by its name below `root`.

  Raises:
    BadRecord: for a name that leads elsewhere, what is no ordinary file, or a huge one.
    OSError: where it cannot be read.
  """
  if len(name) > MAX_NAME:
    raise BadRecord(f"file_name of {len(name)} letters")
  path = root / name
  try:
    if pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts:
      raise BadRecord(f"file_name {name!r} leads out of {root}")
    facts = path.stat()
  except ValueError as e:  # a null byte, half a surrogate pair
    raise BadRecord(f"file_name {name!r}: {e}") from e
  if not stat.S_ISREG(facts.st_mode) or facts.st_size > MAX_FILE:
    raise BadRecord(f"{path} is not a file of at most {MAX_FILE} bytes")
  return path.read_bytes()


def readable_texts(
  row: Callable[[int], Record], count: int, fields: Sequence[str]
) -> Iterator[str]:
  """The fields' strings of rows 0 … count-1; what is no text and bad rows are passed over, to be
  counted when read.

  Raises:
    UserError: where a row lacks one of the fields.
  """
  for index in range(count):
    try:
      found = row(index)
    except BadRecord:
      continue
    for field in fields:
      if field not in found:
        raise UserError(f"record {index} of the data has no {field!r}, only {', '.join(found)}")
      texts = strings(found[field])
      if isinstance(texts, Sequence) and all(isinstance(text, str) for text in texts):
        yield from texts


def evenly(count: int, wanted: int) -> list[int]:
  """`wanted` of `count` indices from the first to the last, evenly spaced; all where there are
  fewer.
  """
  return np.linspace(0, count - 1, min(wanted, count)).astype(int).tolist()
