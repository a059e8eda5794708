"""Sources: what has a length and gives record i as a dict.

`open_source("tfds:emoji", "train")` or `open_source("folder:my_pictures", "train")`. A record holds
the encoded `image` (bytes), `caption` (str) and what else the source knows; nothing is decoded here.
"""

import csv
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from vlx.config import nearest
from vlx.errors import UserError

Record = dict[str, Any]


class Source(Protocol):
  """Random access to records; equal indices give equal records, whoever asks."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record: ...

  def name(self, index: int) -> str:
    """What to call a record in a message."""

  def texts(self, fields: Sequence[str]) -> Iterator[str]:
    """All strings of these fields, without reading pictures where that can be avoided."""


def open_source(spec: str, split: str) -> Source:
  """The source "KIND:PLACE", KIND one of tfds and folder.

  Raises:
    UserError: for an unknown kind, split, folder, or one with nothing in it.
  """
  kind, _, place = spec.partition(":")
  kinds: dict[str, Callable[[str, str], Source]] = {"tfds": TfdsSource, "folder": FolderSource}
  if kind not in kinds:
    raise UserError(f"no data source {spec!r}: it is KIND:PLACE, {nearest(kind, kinds)}")
  source = kinds[kind](place, split)
  if not len(source):
    raise UserError(f"data source {spec!r} has no records in its split {split!r}")
  return source


class TfdsSource:
  """Any data set of TensorFlow Datasets, prepared as array_record on first use.

  Text comes as str, pictures stay encoded. Data lives where `$TFDS_DATA_DIR` says
  (else ~/tensorflow_datasets).
  """

  def __init__(self, place: str, split: str):
    import tensorflow_datasets as tfds

    import vlx.data.emoji  # registers its builder  # pylint: disable=unused-import

    tfds.disable_progress_bar()
    try:
      builder = tfds.builder(place, file_format="array_record")
    except tfds.core.DatasetNotFoundError as e:
      raise UserError(f"TFDS knows no data set {place!r}") from e
    builder.download_and_prepare()
    if split not in builder.info.splits:
      raise UserError(f"no split {split!r} in {place}: {nearest(split, builder.info.splits)}")
    skip = {
        name: tfds.decode.SkipDecoding()
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    self.class_names = {
        name: tuple(feature.names)
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.ClassLabel)
    }
    self._texts = {
        name for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Text) or (
            isinstance(feature, tfds.features.Sequence)
            and isinstance(feature.feature, tfds.features.Text))
    }
    self._records = builder.as_data_source(split, decoders=skip)
    self._label = f"{place}/{split}"

  def __len__(self):
    return len(self._records)

  def __getitem__(self, index):
    record = dict(self._records[int(index)])
    for name in self._texts:
      value = record[name]
      if isinstance(value, bytes):
        record[name] = value.decode()
      else:
        record[name] = tuple(v.decode() for v in value)
    return record

  def name(self, index):
    return f"{self._label}#{index}"

  def texts(self, fields):
    for i in range(len(self)):
      record = self[i]
      for field in fields:
        value = record[field]
        yield from (value,) if isinstance(value, str) else value


class FolderSource:
  """A folder of pictures with `metadata.jsonl` or `metadata.csv`: `file_name`, `caption`, and more.

  A subfolder with the split's name is that split. Without subfolders every tenth file, by a hash of
  its name, is in "val" and the rest in "train": adding pictures moves none across.
  """

  HELD_OUT = 0.1

  def __init__(self, place: str, split: str):
    root = pathlib.Path(place).expanduser()
    if not root.is_dir():
      raise UserError(f"no folder {root}")
    self._root = root / split if (root / split).is_dir() else root
    rows = self._read_metadata(self._root)
    if self._root == root:
      if split not in ("train", "val"):
        raise UserError(f"{root} has no subfolder {split!r}; without one there are 'train' and 'val'")
      held_out = [self._fraction(row["file_name"]) < self.HELD_OUT for row in rows]
      rows = [row for row, held in zip(rows, held_out) if held == (split == "val")]
    self._rows = rows

  @staticmethod
  def _fraction(name: str) -> float:
    return int(hashlib.sha1(name.encode()).hexdigest()[:8], 16) / 2**32

  @staticmethod
  def _read_metadata(folder: pathlib.Path) -> list[Record]:
    if (file := folder / "metadata.jsonl").is_file():
      try:
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
      except ValueError as e:
        raise UserError(f"{file} is not one JSON object per line in UTF-8: {e}") from e
    elif (file := folder / "metadata.csv").is_file():
      with file.open(encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    else:
      raise UserError(
          f"{folder} has neither metadata.jsonl nor metadata.csv (columns file_name and caption)"
      )
    for i, row in enumerate(rows):
      if missing := {"file_name", "caption"} - set(row):
        raise UserError(f"{file}, record {i + 1}: no {' and no '.join(sorted(missing))}")
    return rows

  def __len__(self):
    return len(self._rows)

  def __getitem__(self, index):
    row = dict(self._rows[index])
    row["image"] = (self._root / row.pop("file_name")).read_bytes()
    return row

  def name(self, index):
    return str(self._root / self._rows[index]["file_name"])

  def texts(self, fields):
    for row in self._rows:
      for field in fields:
        yield from (row[field],) if isinstance(row[field], str) else row[field]


def epoch_order(length: int, seed: int, shuffle: bool = True):
  """order[i]: the record at position i of an endless stream, every epoch a new permutation.

  Grain's index shuffle: a pure function of (seed, i) that holds no permutation in memory.
  """
  import grain

  order = grain.MapDataset.range(length).seed(seed)
  if shuffle:
    order = order.shuffle()
  return order.repeat()

