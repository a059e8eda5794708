"""Sources: what has a length and gives record i as a dict.

  tfds:NAME           a data set of TensorFlow Datasets
  folder:PATH         metadata.jsonl or metadata.csv beside the pictures   (vlx.data.sources.annotations)
  coco:PATH           COCO captions                                        (vlx.data.sources.annotations)
  flickr:PATH         Flickr8k and Flickr30k                               (vlx.data.sources.annotations)
  webdataset:PATH     tars of pictures and texts                           (vlx.data.sources.webdataset)
  scenes:COUNT        composed pictures of which everything is known       (vlx.data.datasets.scenes.source)
  mix:3*SPEC;1*SPEC   several, drawn from by weight

A record holds the encoded `image` (bytes), `caption` (str, or a tuple of them) and what else the
source knows; nothing is decoded here. A source is opened without reading its pictures.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import filelock
import numpy as np

from vlx.cli import cache_dir
from vlx.core.config import nearest
from vlx.data.transforms.preprocess import BadRecord
from vlx.core.errors import UserError

Record = dict[str, Any]


class Source(Protocol):
  """Random access to records; equal indices give equal records, whoever asks. Can be pickled."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record: ...

  def name(self, index: int) -> str:
    """What to call a record in a message."""

  def texts(self, fields: Sequence[str]) -> Iterator[str]:
    """All strings of these fields, without reading pictures where that can be avoided."""


def open_source(spec: str, split: str) -> Source:
  """The source "KIND:PLACE" (see above).

  Raises:
    UserError: for an unknown kind, split, folder, or one with nothing in it.
  """
  # These import this module's protocol.
  from vlx.data.sources import annotations
  from vlx.data.sources import webdataset

  kinds: dict[str, Callable[[str, str], Source]] = {
      "tfds": TfdsSource,
      "folder": annotations.folder,
      "coco": annotations.coco,
      "flickr": annotations.flickr,
      "webdataset": webdataset.WebDatasetSource,
      "scenes": _scenes,
      "mix": MixSource,
  }
  kind, _, place = spec.partition(":")
  if kind not in kinds:
    raise UserError(f"no data source {spec!r}: it is KIND:PLACE, {nearest(kind, kinds)}")
  source = kinds[kind](place, split)
  if not len(source):
    raise UserError(f"data source {spec!r} has no records in its split {split!r}")
  return source


def _scenes(place: str, split: str) -> Source:
  from vlx.data.datasets.scenes import source as scenes  # and with it tensorflow_datasets, which takes a second

  return scenes.ScenesSource(place, split)


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


class MixSource:
  """Several sources, one after another; `epoch_order` draws from them by weight."""

  def __init__(self, place: str, split: str):
    self.parts, self.weights = [], []
    for part in place.split(";"):
      weight, star, spec = part.strip().partition("*")
      try:
        self.weights.append(float(weight))
      except ValueError:
        star = ""
      if not star or not self.weights[-1] > 0:
        raise UserError(f"a mix is WEIGHT*KIND:PLACE;WEIGHT*KIND:PLACE…, weights above 0, not {place!r}")
      self.parts.append(open_source(spec, split))
    self.starts = np.cumsum([0, *map(len, self.parts)])

  def _find(self, index):
    part = int(np.searchsorted(self.starts, index, side="right")) - 1
    return self.parts[part], int(index - self.starts[part])

  def __len__(self):
    return int(self.starts[-1])

  def __getitem__(self, index):
    part, own = self._find(index)
    return part[own]

  def name(self, index):
    part, own = self._find(index)
    return part.name(own)

  def texts(self, fields):
    return itertools.chain.from_iterable(part.texts(fields) for part in self.parts)


class TfdsSource:
  """Any data set of TensorFlow Datasets, prepared as array_record on first use.

  Text comes as str, pictures stay encoded. Data lives where `$TFDS_DATA_DIR` says
  (else ~/tensorflow_datasets).
  """

  def __init__(self, place: str, split: str):
    import tensorflow_datasets as tfds

    import vlx.data.datasets.emoji  # registers its builder  # pylint: disable=unused-import

    tfds.disable_progress_bar()
    try:
      builder = tfds.builder(place, file_format="array_record")
    except tfds.core.DatasetNotFoundError as e:
      raise UserError(f"TFDS knows no data set {place!r}") from e
    # One process of a machine prepares, the others wait.
    lock = cache_dir() / "locks" / f"{builder.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(lock):
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
        yield from strings(record[field])


def epoch_order(source: Source, seed: int, shuffle: bool = True):
  """order[i]: the record at position i of an endless stream, every epoch a new permutation.

  Grain's index shuffle: a pure function of (seed, i) that holds no permutation in memory. Of a mix
  each part has its own epochs, and their shares hold in every stretch of the stream.
  """
  import grain

  def stream(first, last):
    indices = grain.MapDataset.range(int(first), int(last)).seed(seed)
    return (indices.shuffle() if shuffle else indices).repeat()

  if not isinstance(source, MixSource):
    return stream(0, len(source))
  return grain.MapDataset.mix(
      [stream(*ends) for ends in itertools.pairwise(source.starts)], source.weights
  )
