"""numpy's `.npz`: the checkpoints of vit_jax and big_vision."""

import math
import pathlib
import zipfile

import ml_dtypes
import numpy as np

from vlx.core.errors import UserError
from vlx.core.files import check_ordinary
from vlx.pretrained.formats import TensorFile
from vlx.pretrained.formats.files import BAD_BYTES, check_members, is_shape

MAX_HEADER = 10_000  # numpy's own bound
_BFLOAT16 = np.dtype("V2")  # numpy has none of its own and keeps it as two nameless bytes
_HEADERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}


def open_npz(path: pathlib.Path) -> TensorFile:
  """The arrays of a file; only their headers are read before they are asked for.

  Raises:
    UserError: for a damaged file, for an array of Python objects, which would be a pickle.
  """
  check_ordinary(path)
  try:
    with zipfile.ZipFile(path) as archive:
      check_members(archive)
      shapes = {
        name.removesuffix(".npy"): _shape(path, archive, name)
        for name in archive.namelist()
        if name.endswith(".npy")
      }
  except OSError as e:
    raise UserError(f"cannot read {path}: {e.strerror or e}") from e
  except UserError:
    raise
  except (
    Exception
  ) as e:  # A header is Python's source to numpy, whose parser has errors of its own.
    raise UserError(f"{path} is no npz, or cut off or damaged: {' '.join(str(e).split())}") from e

  def fetch(name):
    try:
      with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as f:
        return _typed(np.lib.format.read_array(f, allow_pickle=False))
    except (zipfile.BadZipFile, *BAD_BYTES) as e:
      raise UserError(f"{path}: {name} is damaged: {e}") from e

  return TensorFile(shapes, fetch)


def _shape(path, archive, name) -> tuple[int, ...]:
  with archive.open(name) as f:
    # Magic, version, length: numpy would read a header of gigabytes before it refuses it.
    start = f.read(12)
    length = start[8:10] if start[6:7] == b"\1" else start[8:12]
    if int.from_bytes(length, "little") > MAX_HEADER:
      raise ValueError(f"{name} has a header of more than {MAX_HEADER} bytes")
  with archive.open(name) as f:
    shape, _, dtype = _HEADERS[np.lib.format.read_magic(f)](f)
    begins, size = f.tell(), archive.getinfo(name).file_size
  if size - begins != math.prod(shape) * dtype.itemsize and not dtype.hasobject:
    raise ValueError(f"{name} has {size - begins} bytes, and its header says {dtype} {list(shape)}")
  if dtype.hasobject:
    raise UserError(
      f"{path}: {name.removesuffix('.npy')} holds Python objects, which vlx does not run"
    )
  if dtype.kind not in "fiub" and dtype != _BFLOAT16:
    raise ValueError(f"{name} holds {dtype}, which no network's arrays do")
  if not is_shape(shape):
    raise ValueError(f"{name} has no sensible shape")
  return shape


def _typed(array):
  return array.view(ml_dtypes.bfloat16) if array.dtype == _BFLOAT16 else array
