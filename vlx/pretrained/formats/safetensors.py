"""safetensors (huggingface/safetensors, README "Format"), one file or many with an index; reading
and writing.

A file is the length of a header (8 bytes, little endian), the header in JSON, and the tensors one
after another.
"""

import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vlx.core.errors import UserError
from vlx.core.files import check_ordinary
from vlx.pretrained.formats import TensorFile
from vlx.pretrained.formats.files import are_sizes, dtype_named, is_shape, read_array

INDEX = "model.safetensors.index.json"
DTYPES = {
  "F64": "float64",
  "F32": "float32",
  "F16": "float16",
  "BF16": "bfloat16",
  "F8_E4M3": "float8_e4m3fn",
  "F8_E5M2": "float8_e5m2",
  "I64": "int64",
  "I32": "int32",
  "I16": "int16",
  "I8": "int8",
  "U64": "uint64",
  "U32": "uint32",
  "U16": "uint16",
  "U8": "uint8",
  "BOOL": "bool",
}
MAX_HEADER = 100_000_000  # as the reference reader's


class _Entry(NamedTuple):
  dtype: np.dtype
  shape: tuple[int, ...]
  start: int  # byte of the file
  stop: int


def open_safetensors(path: pathlib.Path) -> TensorFile:
  """The tensors of a file; no byte of them is read before it is asked for.

  Raises:
    UserError: where the header is not one, or does not fit the file.
  """
  header, start, size = _header(path)
  metadata = header.pop("__metadata__", {})
  entries = {name: _entry(path, name, said, start) for name, said in header.items()}
  end = start
  for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
    if entry.start < end:
      raise UserError(f"{path}: {name} begins inside of another tensor")
    if entry.start > end:
      raise UserError(f"{path}: {entry.start - end} bytes before {name} belong to no tensor")
    end = entry.stop
  if end != size:
    raise UserError(f"{path} has {size} bytes, and its header says {end}: it is cut off or damaged")

  def fetch(name):
    entry = entries[name]
    return read_array(path, entry.dtype, entry.start, entry.shape)

  return TensorFile({name: entry.shape for name, entry in entries.items()}, fetch, metadata)


def _header(path) -> tuple[dict[str, Any], int, int]:
  """The header, where the tensors begin, and how many bytes the file has."""
  check_ordinary(path)
  try:
    size = path.stat().st_size
    with open(path, "rb") as f:
      length = int.from_bytes(f.read(8), "little")
      if size < 8 or length > size - 8 or length > MAX_HEADER:
        raise UserError(
          f"{path} says that its header has {length} bytes, and the whole file has {size}"
        )
      header = json.loads(f.read(length), object_pairs_hook=_unique)
  except OSError as e:
    raise UserError(f"cannot read {path}: {e.strerror}") from e
  except (ValueError, RecursionError) as e:
    raise UserError(f"{path} is not safetensors: its header is not JSON: {e}") from e
  if not isinstance(header, dict):
    raise UserError(f"{path} is not safetensors: its header names no tensors")
  return header, 8 + length, size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    raise ValueError("a name stands in it twice")
  return found


def _entry(path, name, said, start) -> _Entry:
  if (
    not isinstance(said, dict)
    or not is_shape(said.get("shape"))
    or not are_sizes(said.get("data_offsets"))
  ):
    raise UserError(f"{path}: the header's entry for {name} is malformed")
  kind = said.get("dtype")
  if not isinstance(kind, str) or kind not in DTYPES:
    raise UserError(f"{path}: {name} is of the type {kind!r}; vlx reads {', '.join(DTYPES)}")
  dtype, shape = dtype_named(DTYPES[kind]), tuple(said["shape"])
  wanted, offsets = math.prod(shape) * dtype.itemsize, said["data_offsets"]
  if len(offsets) != 2 or offsets[1] - offsets[0] != wanted:
    raise UserError(
      f"{path}: {name} is {kind} {list(shape)}, {wanted} bytes, but lies at {offsets}"
    )
  return _Entry(dtype, shape, start + offsets[0], start + offsets[1])


def write_safetensors(
  path: pathlib.Path,
  shapes: Mapping[str, tuple[int, ...]],
  tensors: Iterable[tuple[str, np.ndarray]],
) -> None:
  """Writes f32 tensors, one after another as they come; they must be those that `shapes` names.

  The file says that it is PyTorch's, without which transformers does not take it.
  """
  header, end = {"__metadata__": {"format": "pt"}}, 0
  for name, shape in shapes.items():
    start, end = end, end + 4 * math.prod(shape)
    header[name] = dict(dtype="F32", shape=list(shape), data_offsets=[start, end])
  head = json.dumps(header, separators=(",", ":")).encode()
  head += b" " * (-len(head) % 8)
  with open(path, "wb") as f:
    f.write(len(head).to_bytes(8, "little") + head)
    tensors_start = f.tell()
    for name, tensor in tensors:
      f.seek(tensors_start + header[name]["data_offsets"][0])
      f.write(np.ascontiguousarray(tensor, np.float32).data)
