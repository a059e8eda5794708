"""Records: what sources give and preprocessing takes."""

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


def readable_texts(
  row: Callable[[int], Record], count: int, fields: Sequence[str]
) -> Iterator[str]:
  """The fields' strings of rows 0 … count-1; bad rows are passed over, to be counted when read.

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
      yield from strings(found[field])


def evenly(count: int, wanted: int) -> list[int]:
  """`wanted` of `count` indices from the first to the last, evenly spaced; all where there are
  fewer.
  """
  return np.linspace(0, count - 1, min(wanted, count)).astype(int).tolist()
