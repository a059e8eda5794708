"""Batches as a function of the step.

`Batches(…)[s]` is the batch of step s whoever asks, whatever was asked before, and on however many
processes: each builds the rows that are its own. So there is no iterator to save or to lose.
"""

import collections
import errno
import logging
import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from vlx.core.errors import UserError
from vlx.data import sources
from vlx.data.records import BadRecord, Source
from vlx.data.transforms.preprocess import Preprocess

HostBatch = dict[str, np.ndarray]
RETRY_AFTER = (0.1, 1.0, 5.0)  # seconds
# What a disk or a network says for a while.
PASSING = {
  getattr(errno, name)
  for name in (
    *("EIO", "EAGAIN", "EINTR", "EBUSY", "ESTALE", "ETIMEDOUT", "ECONNRESET", "ECONNREFUSED"),
    *("ECONNABORTED", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "EREMOTEIO"),
  )
  if hasattr(errno, name)
}


class ByStep(Protocol):
  """A batch for every step, whichever is asked for."""

  def __getitem__(self, step: int) -> HostBatch: ...


def objects(values: list) -> np.ndarray:
  """A flat array of strings or of tuples, which numpy alone would take apart."""
  array = np.empty(len(values), object)
  array[:] = values
  return array


def _stack(examples: list[dict]) -> HostBatch:
  """Columns of arrays; strings become arrays of objects, which stay on the host."""

  def column(name):
    values = [e[name] for e in examples]
    if isinstance(values[0], (str, tuple)):
      return objects(values)
    shapes = {np.shape(value) for value in values}
    if len(shapes) > 1:
      raise UserError(
        f"examples differ in the shape of {name!r}: {', '.join(map(str, sorted(shapes)))}; resize, crop or pad"
      )
    return np.stack(values)

  return {name: column(name) for name in examples[0]}


class Examples:
  """Record index → preprocessed example; bad records are replaced, counted and named.

  The replacement is a function of the record and its randomness alone: not of what was asked for
  before, so that a run that goes on sees the same batches.

  Args:
    source: of records.
    preprocess: of records to examples.
    max_bad_records: how many different bad records to bear before the run stops.
  """

  def __init__(self, source: Source, preprocess: Preprocess, max_bad_records: int = 0):
    self._source, self._preprocess = source, preprocess
    self._limit = max_bad_records
    self._bad: dict[int, str] = {}
    self._cache: dict[int, dict] = {}

  def __len__(self):
    return len(self._source)

  def order(self, seed: int, shuffle: bool):
    """order[i]: the record at position i of an endless stream."""
    return sources.epoch_order(self._source, seed, shuffle)

  def __call__(self, index: int, rng: np.random.Generator | None) -> tuple[int, dict]:
    """(the index of the record used, its example): record `index`, or the next good one."""
    for offset in range(len(self)):
      candidate = (index + offset) % len(self)
      try:
        return candidate, self._preprocess.finish(self._prepared(candidate), rng)
      except (BadRecord, OSError) as e:
        self._note(candidate, e)
    raise UserError("no record of the data can be read: " + "; ".join(self._bad.values()))

  def _prepared(self, index: int) -> dict:
    if index in self._cache:
      return self._cache[index]
    example = self._preprocess.prepare(self._read(index))
    if self._preprocess.cached:
      self._cache[index] = example
    return example

  def _read(self, index: int):
    """The record; a disk or a network that fails is asked again, for that is no fault of the
    record.
    """
    for pause in RETRY_AFTER:
      try:
        return self._source[index]
      except OSError as e:
        if e.errno not in PASSING:
          raise
        time.sleep(pause)
    return self._source[index]

  def _note(self, index: int, error: Exception) -> None:
    if index in self._bad:
      return
    message = f"{self._source.name(index)}: {error}"
    self._bad[index] = message
    logging.warning("bad record %d of at most %d: %s", len(self._bad), self._limit, message)
    if len(self._bad) > self._limit:
      raise UserError(
        f"{len(self._bad)} bad records, more than the {self._limit} allowed here (data.max_bad_records): "
        + "; ".join(self._bad.values())
      ) from error


class Batches:
  """batches[step] → this process's rows of the batch, with `example_id` (record indices) among
  them.

  Row r of step s is position s·B + r of an endless stream in which every epoch is a new
  permutation.

  Args:
    examples: record index → example.
    batch_size: B, over all processes.
    seed: of the permutations, and of the randomness of every example.
    rows: which rows of each batch to make (`partition.local_rows`); all without it.
    shuffle: whether to permute.
  """

  def __init__(
    self,
    examples: Examples,
    batch_size: int,
    seed: int,
    *,
    rows: np.ndarray | None = None,
    shuffle: bool = True,
  ):
    self._examples, self._batch_size, self._seed = examples, batch_size, seed
    self._rows = np.arange(batch_size) if rows is None else rows
    self._order = examples.order(seed, shuffle)

  def __getitem__(self, step: int) -> HostBatch:
    positions = step * self._batch_size + self._rows
    used, examples = zip(*(self._example(int(p)) for p in positions))
    return {**_stack(list(examples)), "example_id": np.array(used)}

  def _example(self, position: int):
    rng = np.random.Generator(np.random.Philox(key=[self._seed, position]))
    return self._examples(int(self._order[position]), rng)


def iterate(
  batches: ByStep, start: int, stop: int, *, workers: int = 0, threads: int = 2, prefetch: int = 4
) -> Iterator[HostBatch]:
  """Batches start … stop-1 in order, made ahead of their use.

  Args:
    batches: of every step.
    start: the first step.
    stop: one after the last.
    workers: processes to make them in; 0: threads of this one.
    threads: of this process, where there are no workers.
    prefetch: how many batches to have ready.
  """
  import grain

  steps = grain.MapDataset.range(start, stop).map(
    _InWorker(batches) if workers else batches.__getitem__
  )
  if not workers:
    return iter(steps.to_iter_dataset(grain.ReadOptions(threads, prefetch)))
  options = grain.MultiprocessingOptions(
    workers, per_worker_buffer_size=max(1, prefetch // workers)
  )
  return iter(steps.to_iter_dataset(grain.ReadOptions(1, 1)).mp_prefetch(options))


class _InWorker:
  """Batches in a process of their own, which ends with the one that asks for them, however that
  ends.
  """

  def __init__(self, batches: ByStep):
    self._batches, self._watched = batches, False

  def __call__(self, step: int) -> HostBatch:
    parent = multiprocessing.parent_process()
    if parent is not None and not self._watched:
      self._watched = True
      threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    return self._batches[step]


def _end_with(process) -> None:
  multiprocessing.connection.wait([process.sentinel])
  os._exit(1)


def one_pass(
  examples: Examples, batch_size: int, rows: np.ndarray | None = None
) -> Iterator[HostBatch]:
  """Every record once, in order; the last batch is filled up with copies of the last record.

  With `rows`, those of each batch alone. `example_mask` is False for the copies.
  """
  rows = np.arange(batch_size) if rows is None else rows
  last = len(examples) - 1
  for first in range(0, len(examples), batch_size):
    made = _stack([examples(min(int(first + r), last), None)[1] for r in rows])
    yield {**made, "example_mask": first + rows <= last}


def split_host(batch: HostBatch) -> tuple[HostBatch, HostBatch]:
  """(what goes to the devices, what stays on the host: strings and `example_id`)."""
  parts = collections.defaultdict(dict)
  for name, value in batch.items():
    on_host = value.dtype == object or name.rpartition("/")[2] == "example_id"
    parts[on_host][name] = value
  return parts[False], parts[True]
