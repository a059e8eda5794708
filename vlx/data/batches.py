"""Batches as a function of the step.

`Batches(…)[s]` is the batch of step s whoever asks, whatever was asked before, and on however many
processes: each builds the rows that are its own. So there is no iterator to save or to lose.
"""

import collections
import json
import logging
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from vlx.data.preprocess import BadRecord, Preprocess
from vlx.data.sources import Source, epoch_order
from vlx.errors import UserError

HostBatch = dict[str, np.ndarray]


def _objects(values: list) -> np.ndarray:
  """A flat array of strings or of tuples, which numpy alone would take apart."""
  array = np.empty(len(values), object)
  array[:] = values
  return array


def _stack(examples: list[dict]) -> HostBatch:
  """Columns of arrays; strings become arrays of objects, which stay on the host."""

  def column(values):
    return _objects(values) if isinstance(values[0], (str, tuple)) else np.stack(values)

  return {name: column([e[name] for e in examples]) for name in examples[0]}


class Examples:
  """Record index → preprocessed example; bad records are replaced, counted and named.

  Args:
    source: of records.
    preprocess: of records to examples.
    bad_records: how many different bad records to bear before the run stops.
  """

  def __init__(self, source: Source, preprocess: Preprocess, bad_records: int = 0):
    self._source, self._preprocess = source, preprocess
    self._limit = bad_records
    self._bad: dict[int, str] = {}
    self._cache: dict[int, dict] = {}
    self._lock = threading.Lock()

  def __len__(self):
    return len(self._source)

  def __call__(self, index: int, rng: np.random.Generator | None) -> tuple[int, dict]:
    """(the index of the record used, its example): record `index`, or the next good one."""
    for offset in range(len(self)):
      candidate = (index + offset) % len(self)
      if candidate in self._bad:
        continue
      try:
        return candidate, self._preprocess.finish(self._prepared(candidate), rng)
      except (BadRecord, OSError) as e:
        self._note(candidate, e)
    raise UserError("no record of the data can be read: " + "; ".join(self._bad.values()))

  def _prepared(self, index: int) -> dict:
    if index in self._cache:
      return self._cache[index]
    example = self._preprocess.prepare(self._source[index])
    if self._preprocess.cached:
      self._cache[index] = example
    return example

  def _note(self, index: int, error: Exception) -> None:
    message = f"{self._source.name(index)}: {error}"
    with self._lock:
      self._bad[index] = message
      logging.warning("bad record %d of at most %d: %s", len(self._bad), self._limit, message)
      if len(self._bad) > self._limit:
        raise UserError(
            f"{len(self._bad)} bad records, more than the {self._limit} allowed here (data.bad_records): "
            + "; ".join(self._bad.values())
        ) from error


class Batches:
  """batches[step] → this process's rows of the batch, with `example_id` (record indices) among them.

  Row r of step s is position s·B + r of an endless stream that is newly permuted each epoch.
  """

  def __init__(self, examples: Examples, batch_size: int, seed: int, *, shuffle: bool = True):
    if batch_size % jax.process_count():
      raise UserError(f"a batch of {batch_size} is not divided by {jax.process_count()} processes")
    self._examples, self._batch_size, self._seed = examples, batch_size, seed
    self._order = epoch_order(len(examples), seed, shuffle)

  def __getitem__(self, step: int) -> HostBatch:
    rows = self._batch_size // jax.process_count()
    first = step * self._batch_size + jax.process_index() * rows
    used, examples = zip(*(self._example(first + r) for r in range(rows)))
    return {**_stack(list(examples)), "example_id": np.array(used)}

  def _example(self, position: int):
    rng = np.random.Generator(np.random.Philox(key=[self._seed, position]))
    return self._examples(int(self._order[position]), rng)

  def iterate(self, start: int, stop: int, *, threads: int = 2, ahead: int = 4) -> Iterator[HostBatch]:
    """Batches start … stop-1 in order, the next `ahead` of them being made by threads."""
    import grain

    steps = grain.MapDataset.range(start, stop).map(self.__getitem__)
    return iter(steps.to_iter_dataset(grain.ReadOptions(threads, ahead)))


def one_pass(examples: Examples, batch_size: int) -> Iterator[HostBatch]:
  """Every record once, in order, with `example_mask`: False on rows that fill up the last batch.

  Each process gets its rows of every batch, and all get the same number of batches. A bad record
  here is an error, for a measure must be of the whole split.
  """
  rows = batch_size // jax.process_count()
  for first in range(0, len(examples), batch_size):
    first += jax.process_index() * rows
    indices = np.arange(first, first + rows)
    mask = indices < len(examples)
    made = [examples(min(int(i), len(examples) - 1), None)[1] for i in indices]
    yield {**_stack(made), "example_mask": mask}


def split_host(batch: HostBatch) -> tuple[HostBatch, HostBatch]:
  """(what goes to the devices, what stays on the host: strings and `example_id`)."""
  parts = collections.defaultdict(dict)
  for name, value in batch.items():
    parts[value.dtype == object or name == "example_id"][name] = value
  return parts[False], parts[True]


def to_devices(batch: HostBatch, sharding: jax.sharding.NamedSharding) -> dict[str, jax.Array]:
  """One global array per field from each process's rows."""
  return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def own_rows(array: np.ndarray) -> np.ndarray:
  """This process's rows of an array that every process has."""
  return np.split(array, jax.process_count())[jax.process_index()]


def gather_rows(array: np.ndarray) -> np.ndarray:
  """Every process's rows, strings included, in the order of the global batch."""
  if jax.process_count() == 1:
    return array
  if array.dtype != object:
    return multihost_utils.process_allgather(array, tiled=True)
  encoded = np.frombuffer(json.dumps(array.tolist()).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.array(len(encoded)))
  padded = np.pad(encoded, (0, lengths.max() - len(encoded)))
  parts = multihost_utils.process_allgather(padded)
  values = [v for part, n in zip(parts, lengths) for v in json.loads(part[:n].tobytes())]
  return _objects([tuple(v) if isinstance(v, list) else v for v in values])
