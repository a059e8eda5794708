"""Sources: what has a length and gives record i as a dict.

  tfds:NAME           a data set of TensorFlow Datasets
  folder:PATH         metadata.jsonl or metadata.csv beside the images      (vlx.data.sources.annotations)
  coco:PATH           COCO captions                                         (vlx.data.sources.annotations)
  flickr:PATH         Flickr8k and Flickr30k                                (vlx.data.sources.annotations)
  webdataset:PATH     tars of images and texts                              (vlx.data.sources.webdataset)
  text:PATH           lines of text                                         (vlx.data.sources.text)
  conversations:PATH  LLaVA's and Alpaca's JSON                             (vlx.data.sources.text)
  scenes:COUNT        composed images of which everything is known          (vlx.data.datasets.scenes)
  mix:3*SPEC;1*SPEC   several, sampled by weight
  my.module.f:PATH    anybody's: f(path, split)

A record holds the encoded `image` (bytes), `caption` (str, or a tuple of them) and what else the
source knows; nothing is decoded here. A source is opened without reading its images.
"""

import itertools
from collections.abc import Callable

from vlx.core.config import import_path, nearest
from vlx.core.errors import UserError
from vlx.data.records import Source
from vlx.data.sources import annotations, mix, text, tfds, webdataset

KINDS: dict[str, Callable[[str, str], Source]] = {
  "tfds": tfds.TfdsSource,
  "folder": annotations.folder,
  "coco": annotations.coco,
  "flickr": annotations.flickr,
  "webdataset": webdataset.WebDatasetSource,
  "text": text.lines,
  "conversations": text.conversations,
  "scenes": lambda path, split: _scenes(path, split),
  "mix": lambda path, split: mix.MixSource(path, split, open_source),
}


def open_source(spec: str | None, split: str) -> Source:
  """The source "KIND:PATH" (see above).

  Raises:
    UserError: for an unknown kind, split, folder, or one with nothing in it.
  """
  if not spec:
    raise UserError("no data source is set; give --config.data.source=KIND:PATH, e.g. folder:PATH")
  kind, _, path = spec.partition(":")
  if kind not in KINDS and "." not in kind:
    raise UserError(f"no data source {spec!r}: it is KIND:PATH, {nearest(kind, KINDS)}")
  source = (KINDS[kind] if kind in KINDS else import_path(kind))(path, split)
  if not len(source):
    raise UserError(f"data source {spec!r} has no records in its split {split!r}")
  return source


def _scenes(path: str, split: str) -> Source:
  from vlx.data.datasets.scenes import (
    source,  # here: it renders by libraries that take a second to import
  )

  return source.ScenesSource(path, split)


def epoch_order(source: Source, seed: int, shuffle: bool = True):
  """order[i]: the record at position i of an endless stream, every epoch a new permutation.

  Grain's index shuffle: a pure function of (seed, i) that holds no permutation in memory. Of a mix
  each part has its own epochs, and their shares hold in every stretch of the stream.
  """
  import grain

  def stream(first, last):
    indices = grain.MapDataset.range(int(first), int(last)).seed(seed)
    return (indices.shuffle() if shuffle else indices).repeat()

  if not isinstance(source, mix.MixSource):
    return stream(0, len(source))
  return grain.MapDataset.mix(
    [stream(*ends) for ends in itertools.pairwise(source.starts)], source.weights
  )
