"""Checksums of arrays, the same however an array is split over devices and processes.

Orbax keeps none of array data: a bit that a disk turns comes back as another number. A sum here is
Σ w(index) · bits of all elements, mod 2⁶⁴, with odd weights: of one element no change is missed, of
many one in 2³² at most.
"""

import concurrent.futures
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

ELEMENTS = 2**20  # of an array at a time
_ODD = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)


def checksums(arrays: Mapping[str, jax.Array]) -> np.ndarray:
  """uint32 `[N, 2]`, the halves of the sum of each array, in the order of their names.

  All processes must call it together: each adds up what its own devices hold.
  """
  with concurrent.futures.ThreadPoolExecutor() as threads:  # numpy lets go of the interpreter
    sums = [_own(arrays[name], threads) for name in sorted(arrays)]
  halves = np.array([divmod(x, 2**32) for x in sums], np.uint32).reshape(-1, 2)
  if jax.process_count() == 1:
    return halves
  of_all = np.asarray(multihost_utils.process_allgather(halves)).astype(object)
  totals = (of_all[..., 0].sum(axis=0) * 2**32 + of_all[..., 1].sum(axis=0)) % 2**64
  return np.array([divmod(x, 2**32) for x in totals], np.uint32).reshape(-1, 2)


def _own(array: jax.Array, threads: concurrent.futures.Executor) -> int:
  """The sum of the elements that this process is the first to hold."""
  shards = (s for s in array.addressable_shards if s.replica_id == 0)
  blocks = (b for s in shards for b in _blocks(np.asarray(s.data), [i.start or 0 for i in s.index]))
  return sum(threads.map(lambda block: _sum(*block), blocks)) % 2**64


def _blocks(x: np.ndarray, first: list[int]) -> Iterator[tuple[np.ndarray, list[int]]]:
  """(a part of a block, the index of its first element): `_sum` copies it to twice its size."""
  if x.size <= ELEMENTS:
    yield x, first
    return
  axis = int(np.argmax(x.shape))
  for part in np.array_split(np.arange(x.shape[axis]), min(-(-x.size // ELEMENTS), x.shape[axis])):
    start, stop = int(part[0]), int(part[-1]) + 1
    yield (
      x[(slice(None),) * axis + (slice(start, stop),)],
      [at + start * (i == axis) for i, at in enumerate(first)],
    )


def _sum(x: np.ndarray, first: list[int]) -> int:
  bits = np.atleast_1d(np.ascontiguousarray(x))
  size = min(x.dtype.itemsize, 4)
  words = bits.view(f"u{size}").reshape(*x.shape, x.dtype.itemsize // size)  # f64 has two
  bits = words.astype(np.uint64)
  for axis, start in reversed([*enumerate([*first, 0])]):
    indices = np.arange(start + 1, start + 1 + bits.shape[-1], dtype=np.uint64)
    weights = _mixed(indices * np.uint64(_ODD[axis % len(_ODD)])) | np.uint64(1)
    bits = bits @ weights
  return int(bits)


def _mixed(x: np.ndarray) -> np.ndarray:
  """Well spread bits of each number (Steele et al., 2014, SplitMix)."""
  for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
    x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
  return x ^ (x >> np.uint64(31))
