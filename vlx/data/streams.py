"""Several streams of batches in one run, each with its own source, preprocessing and share.

  config.data.streams = dict(
      captions=dict(source="coco:data", preprocess="…", weight=3.0),
      sentences=dict(source="text:data/sentences.txt", preprocess="…", weight=1.0),
  )

What a stream does not say, `config.data` says. `config.data.mixture` says how they are put
together:

  by_step  each step takes a batch of one stream; `task` i32 [B] is its index among their names in
           alphabetical order, for `jax.lax.switch(batch["task"][0], …)`. All streams give arrays of
           the same names and shapes.
  all      each step takes a batch of every stream, each of its own size:
           batch["captions"]["image"]; `weight` says nothing here, for the loss weighs its terms

Rows can be mixed within a batch too: by the source "mix:…" (`vlx.data.sources`).
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vlx.core.config import ConfigDict, nearest
from vlx.core.errors import UserError
from vlx.data import sources
from vlx.data.batches import Batches, ByStep, HostBatch

MIXTURES = ("by_step", "all")
FIELDS = ("source", "split", "batch_size", "preprocess")  # that a stream may say for itself


@dataclasses.dataclass(frozen=True)
class Stream:
  """Fields of `config.data`, and a share of the steps."""

  source: str
  split: str
  batch_size: int
  preprocess: str
  weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Streams:
  """Those of a config by name, in alphabetical order; the only one is called "" where it has no
  `streams`.

  Raises:
    UserError: for a field that a stream does not have, an unknown mixture, a weight that is not
      above 0, streams of different sizes that take turns.
  """

  by_name: Mapping[str, Stream]
  nested: bool  # whether a batch holds one of every stream

  @classmethod
  def of(cls, data: ConfigDict) -> "Streams":
    if data.mixture not in MIXTURES:
      raise UserError(f"data.mixture is {data.mixture!r}, {nearest(data.mixture, MIXTURES)}")
    common = {name: data[name] for name in FIELDS}
    found = {}
    for name, changes in sorted(data.streams.items()) or [("", {})]:
      for field in changes:
        if field not in (*FIELDS, "weight"):
          raise UserError(
            f"data.streams.{name} has no {field!r}, {nearest(field, (*FIELDS, 'weight'))}"
          )
      found[name] = Stream(**common | dict(changes))
      if not found[name].weight > 0:
        raise UserError(f"data.streams.{name}.weight is {found[name].weight}, not above 0")
    nested = bool(data.streams) and data.mixture == "all"
    if not nested and len({stream.batch_size for stream in found.values()}) > 1:
      raise UserError('with data.mixture="by_step" all streams must have the same batch_size')
    return cls(found, nested)

  def rows(self, name: str) -> int:
    """The number of rows of an array of the global batch, called "stream/name" where batches are nested."""
    stream = name.partition("/")[0] if self.nested else next(iter(self.by_name))
    return self.by_name[stream].batch_size

  @property
  def batch_size(self) -> int:
    """Rows of all that a step takes."""
    sizes = [stream.batch_size for stream in self.by_name.values()]
    return sum(sizes) if self.nested else sizes[0]

  def seeds(self, seed: int) -> dict[str, int]:
    """Name → seed of its own, so that streams over the same data do not go in step."""
    if "" in self.by_name:
      return {"": seed}
    return {
      name: int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
      for index, name in enumerate(self.by_name)
    }

  def texts(self, fields: Sequence[str]) -> Iterator[str]:
    """All strings of these fields, of every stream; a source that two streams read gives them
    once.
    """
    opened = dict.fromkeys((stream.source, stream.split) for stream in self.by_name.values())
    return itertools.chain.from_iterable(sources.open_source(*one).texts(fields) for one in opened)

  def combine(self, batches: Mapping[str, Batches]) -> ByStep:
    """The run's batches from those of each stream, in the same order."""
    if self.nested:
      return _Nested(batches)
    if "" in batches:
      return batches[""]
    return _TakingTurns(batches, [self.by_name[name].weight for name in batches])


class _Nested:
  def __init__(self, streams):
    self._streams = streams

  def __getitem__(self, step: int) -> HostBatch:
    return {
      f"{stream}/{name}": array
      for stream, batches in self._streams.items()
      for name, array in batches[step].items()
    }


class _TakingTurns:
  def __init__(self, streams, weights):
    import grain

    # The k-th step of stream i as (i, k). By Grain's mix the shares hold in every stretch of the
    # steps.
    steps = [
      grain.MapDataset.range(2**40).map(lambda k, index=index: (index, k))
      for index in range(len(streams))
    ]
    self._streams, self._order = list(streams.values()), grain.MapDataset.mix(steps, weights)

  def __getitem__(self, step: int) -> HostBatch:
    index, own_step = self._order[step]
    batch = self._streams[index][own_step]
    return {**batch, "task": np.full(len(batch["example_id"]), index, np.int32)}
