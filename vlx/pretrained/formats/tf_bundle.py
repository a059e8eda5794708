"""TensorFlow's checkpoints (`NAME.index` beside `NAME.data-00000-of-00001`), without TensorFlow.

The index is a table of sorted keys (tensorflow/core/lib/io/table, LevelDB's format): blocks of
entries whose keys leave out what they share with the key before, an index of the blocks, a footer. The
values are messages of tensor_bundle.proto: type, shape, and which bytes of which data file. Blocks and
tensors have a CRC-32C each, masked.
"""

import math
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from vlx.core.errors import UserError
from vlx.core.files import check_ordinary
from vlx.pretrained.formats import TensorFile
from vlx.pretrained.formats.crc32c import crc32c
from vlx.pretrained.formats.files import dtype_named, is_shape, read_array

# tensorflow/core/framework/types.proto
DTYPES = {
  1: "float32",
  2: "float64",
  3: "int32",
  4: "uint8",
  5: "int16",
  6: "int8",
  9: "int64",
  10: "bool",
  14: "bfloat16",
  19: "float16",
}
_MAGIC, _FOOTER = 0xDB4775248B80FB57, 48
_TRAILER = 5  # of a block: how it is compressed, and its checksum
# Far more than any model has; a table of shared keys can grow without end from few bytes.
_INDEX_BYTES, _KEY_BYTES, _ENTRIES, _DATA_FILES = 1 << 24, 1 << 10, 20_000, 10_000


class _Entry(NamedTuple):
  """Where a tensor lies."""

  dtype: np.dtype
  shape: tuple[int, ...]
  shard: int
  offset: int
  size: int
  checksum: int | None


def open_tf_bundle(index: pathlib.Path) -> TensorFile:
  """The tensors of a checkpoint; a tensor's checksum is compared when it is read.

  Args:
    index: the file NAME.index.

  Raises:
    UserError: for a damaged file, one of the data files that is not there or too short, a type or a
      layout that vlx does not read.
  """
  check_ordinary(index)
  try:
    with open(index, "rb") as f:
      data = f.read(_INDEX_BYTES + 1)
  except OSError as e:
    raise UserError(f"cannot read {index}: {e.strerror}") from e
  try:
    entries, count = _entries(data)
  except (ValueError, IndexError) as e:
    reason = e if isinstance(e, ValueError) else "it ends too early"
    raise UserError(f"{index} is no index of TensorFlow's, or cut off or damaged: {reason}") from e
  stem = index.name.removesuffix(".index")
  files = [index.with_name(f"{stem}.data-{i:05}-of-{count:05}") for i in range(count)]
  _check(index, files, entries)

  def fetch(name):
    entry = entries[name]
    array = read_array(files[entry.shard], entry.dtype, entry.offset, entry.shape)
    if entry.checksum is not None and crc32c(array) != entry.checksum:
      raise UserError(f"{files[entry.shard]}: the bytes of {name} are not those that were written")
    return array

  return TensorFile({name: entry.shape for name, entry in entries.items()}, fetch)


def _check(index, files, entries) -> None:
  """Every tensor must lie in its file, and in no other tensor's bytes."""
  sizes = {}
  for shard in sorted({entry.shard for entry in entries.values()}):
    if not files[shard].is_file():
      raise UserError(f"{index}: there is no {files[shard].name} beside it")
    sizes[shard] = files[shard].stat().st_size
  place = lambda item: (item[1].shard, item[1].offset)
  end = (-1, 0)
  for name, entry in sorted(entries.items(), key=place):
    if entry.offset + entry.size > sizes[entry.shard]:
      raise UserError(f"{files[entry.shard]} ends within {name}: it is cut off or damaged")
    if entry.size:
      if place((name, entry)) < end:
        raise UserError(f"{index} is damaged: {name} lies inside of another tensor")
      end = (entry.shard, entry.offset + entry.size)


def _entries(data: bytes) -> tuple[dict[str, _Entry], int]:
  """(name → entry, the number of data files) of a whole index."""
  if len(data) > _INDEX_BYTES:
    raise ValueError(f"it has more than {_INDEX_BYTES} bytes")
  found, last, count = {}, b"", 0
  for number, (key, value) in enumerate(_table(data)):
    if number == 0:
      if key:
        raise ValueError("it does not begin with a header")
      count = _data_files(value)
      continue
    if key <= last or len(found) == _ENTRIES:
      raise ValueError("its keys are not in order" if key <= last else "it has too many entries")
    last = key
    found[key.decode()] = _entry(key.decode(), value, count)
  if not found:
    raise ValueError("it names no tensors")
  return found, count


def _data_files(header: bytes) -> int:
  fields = {number: value for number, _, value in _message(header)}
  if fields.get(2, 0) != 0:
    raise ValueError("it is in the byte order of another machine")
  count = fields.get(1, 0)
  if type(count) is not int or not 0 < count <= _DATA_FILES:
    raise ValueError(f"it says that there are {count} data files")
  return count


def _entry(name: str, value: bytes, files: int) -> _Entry:
  said = {1: 0, 2: b"", 3: 0, 4: 0, 5: 0, 6: None}
  for number, wire, x in _message(value):
    if number == 7:
      raise ValueError(f"{name} is kept in slices, which vlx does not read")
    if wire != {2: 2, 6: 5}.get(number, 0):
      raise ValueError(f"the entry of {name} is malformed")
    said[number] = x
  kind, shape, shard, offset, size, checksum = (said[i] for i in range(1, 7))
  if kind not in DTYPES:
    raise ValueError(f"{name} is of TensorFlow's type {kind}, which vlx does not read")
  dtype, shape = dtype_named(DTYPES[kind]), _shape(name, shape)
  if math.prod(shape) * dtype.itemsize != size:
    raise ValueError(f"{name} is {dtype} {list(shape)}, but has {size} bytes")
  if shard >= files:
    raise ValueError(f"{name} lies in data file {shard} of {files}")
  crc = None if checksum is None else _unmasked(checksum)
  return _Entry(dtype, shape, shard, offset, size, crc)


def _shape(name: str, message: bytes) -> tuple[int, ...]:
  sizes = []
  for number, wire, value in _message(message):
    if (number, wire) != (2, 2):
      raise ValueError(f"{name} has no known shape")
    size = {n: x for n, _, x in _message(value)}.get(1, 0)
    if not is_shape([*sizes, size]):
      raise ValueError(f"{name} has no sensible shape")
    sizes.append(size)
  return tuple(sizes)


def _unmasked(stored: int) -> int:
  """TensorFlow keeps checksums turned by 15 bits and moved, for data that hold checksums themselves
  (tensorflow/core/lib/hash/crc32c.h).
  """
  turned = (stored - 0xA282EAD8) % (1 << 32)
  return (turned >> 17 | turned << 15) % (1 << 32)


# The table.


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
  """(key, value) of a whole table, in order."""
  footer = data[-_FOOTER:]
  if len(footer) < _FOOTER or int.from_bytes(footer[-8:], "little") != _MAGIC:
    raise ValueError("it has not the footer of one")
  at = 0
  handles = []  # where the meta block begins, its size, and those of the index
  for _ in range(4):
    number, at = _varint(footer, at)
    handles.append(number)
  if any(_block(data, *handles[:2])):
    raise ValueError("it holds more than a table")
  for _, place in _block(data, *handles[2:]):
    start, at = _varint(place, 0)
    yield from _block(data, start, _varint(place, at)[0])


def _block(data: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
  end = start + size
  if end + _TRAILER + _FOOTER > len(data) or size < 4:
    raise ValueError("a block reaches beyond its end")
  if data[end]:
    raise ValueError("it is compressed, which TensorFlow's indexes are not")
  stored = int.from_bytes(data[end + 1 : end + _TRAILER], "little")
  if crc32c(np.frombuffer(data, np.uint8, size + 1, start)) != _unmasked(stored):
    raise ValueError("a block is not what was written")
  restarts = int.from_bytes(data[end - 4 : end], "little")
  end -= 4 * (restarts + 1)
  if end < start:
    raise ValueError("a block reaches beyond its end")
  block, at, key = data[start:end], 0, b""
  while at < len(block):
    shared, at = _varint(block, at)
    own, at = _varint(block, at)
    length, at = _varint(block, at)
    if shared > len(key) or shared + own > _KEY_BYTES or at + own + length > len(block):
      raise ValueError("an entry reaches beyond its block")
    key = key[:shared] + block[at : at + own]
    at += own + length
    yield key, block[at - length : at]


# Messages of protobuf.


def _varint(data: bytes, at: int) -> tuple[int, int]:
  """(number, where it ends)."""
  number = shift = 0
  while shift < 70:
    byte = data[at]
    at += 1
    number |= (byte & 127) << shift
    shift += 7
    if byte < 128:
      return number, at
  raise ValueError("a number of it has no end")


def _message(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
  """(number, kind, value) of each field: a whole number, or the bytes of a kind-2 field."""
  at = 0
  while at < len(data):
    key, at = _varint(data, at)
    number, wire = key >> 3, key & 7
    if wire == 0:
      value, at = _varint(data, at)
    elif wire in (1, 2, 5):
      size, at = _varint(data, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
      if at + size > len(data):
        raise ValueError("a message of it ends too early")
      value, at = data[at : at + size], at + size
      value = value if wire == 2 else int.from_bytes(value, "little")
    else:
      raise ValueError("a message of it is malformed")
    yield number, wire, value
