"""Helpers of all readers of formats: types by name, arrays that lie in files."""

import json
import math
import pathlib
from typing import Any

import ml_dtypes
import numpy as np

from vlx.core.errors import UserError


def read_array(path: pathlib.Path, dtype: Any, start: int, shape: tuple[int, ...]) -> np.ndarray:
  """The array that begins at byte `start` of a file: a mapping, read-only, whose bytes are read
  when they are used.
  """
  if not math.prod(shape):
    return np.empty(shape, dtype)
  return np.asarray(np.memmap(path, dtype, "r", start, shape))


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a file of JSON.

  Raises:
    UserError: where there is no such file, or something else in it.
  """
  try:
    found = json.loads(path.read_bytes())
  except OSError as e:
    raise UserError(f"cannot read {path}: {e.strerror}") from e
  except (ValueError, RecursionError) as e:
    raise UserError(f"{path} is not JSON: {e}") from e
  if not isinstance(found, dict):
    raise UserError(f"{path} holds no object of JSON")
  return found


def is_shape(value: Any) -> bool:
  """Whether what a file says is a shape is one."""
  return isinstance(value, (list, tuple)) and all(type(n) is int and n >= 0 for n in value)


FLOATS = {
  "bfloat16": ml_dtypes.bfloat16,
  "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
  "float8_e5m2": ml_dtypes.float8_e5m2,
}


def dtype_named(name: str) -> np.dtype:
  """The dtype of a name, numpy's or one in `FLOATS`."""
  return np.dtype(FLOATS.get(name, name))
