"""Helpers of all readers of formats: types by name, arrays that lie in files."""

import lzma
import math
import os
import pathlib
import zipfile
import zlib
from typing import Any

import ml_dtypes
import numpy as np

MAX_MEMBERS, MAX_UNPACKED = 100_000, 1 << 30
# Of arrays: numpy has no more axes, and counts an array's bytes in 63 bits, those of empty ones too.
_MAX_AXES, _MAX_SIZE, _MAX_NUMBERS = 32, 1 << 48, 1 << 56

# What damaged members of a zip raise, by how they are compressed.
BAD_BYTES = (zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError)


def read_array(path: pathlib.Path, dtype: Any, start: int, shape: tuple[int, ...]) -> np.ndarray:
  """The array that begins at byte `start` of a file: a mapping, read-only, whose bytes are read
  when they are used.
  """
  if not math.prod(shape):
    return np.empty(shape, dtype)
  return np.asarray(np.memmap(path, dtype, "r", start, shape))


def is_shape(value: Any) -> bool:
  """Whether what a file says is a shape is one."""
  return (
    are_sizes(value) and len(value) <= _MAX_AXES and math.prod(n for n in value if n) < _MAX_NUMBERS
  )


def are_sizes(value: Any) -> bool:
  """Whether what a file says are offsets, lengths or strides can be that."""
  return isinstance(value, (list, tuple)) and all(
    type(n) is int and 0 <= n < _MAX_SIZE for n in value
  )


def check_members(archive: zipfile.ZipFile) -> None:
  """Raises `ValueError` where a zip is none of a checkpoint: with a password, with names that stand
  twice, with members that would fill memory.
  """
  members = archive.infolist()
  if len(members) > MAX_MEMBERS:
    raise ValueError(f"it has {len(members)} members")
  if len({member.filename for member in members}) < len(members):
    raise ValueError("a name stands in it twice")
  if any(member.flag_bits & 1 for member in members):
    raise ValueError("it is encrypted")
  packed, size = sum(m.compress_size for m in members), os.stat(str(archive.filename)).st_size
  if packed > size:
    raise ValueError(
      f"its members say that they have {packed} bytes, and the whole file has {size}"
    )
  unpacked = sum(member.file_size for member in members)
  if unpacked > max(MAX_UNPACKED, 100 * packed):
    raise ValueError(f"its {packed} bytes say that they unpack to {unpacked}")


FLOATS = {
  "bfloat16": ml_dtypes.bfloat16,
  "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
  "float8_e5m2": ml_dtypes.float8_e5m2,
}


def dtype_named(name: str) -> np.dtype:
  """The dtype of a name, numpy's or one in `FLOATS`."""
  return np.dtype(FLOATS.get(name, name))
