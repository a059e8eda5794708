"""GGUF, llama.cpp's format: tensors, most of them quantised, and metadata with the tokenizer in it.

Read by the package `gguf`, which takes a file as it is; what makes no sense to it is the file's
fault here.
"""

import pathlib

import numpy as np

from vlx.core.errors import UserError
from vlx.pretrained.formats import TensorFile


def _check_places(reader, size: int) -> None:
  """Raises `ValueError` where tensors overlap, and where bytes belong to none but for alignment."""
  end = reader.data_offset
  for tensor in sorted(reader.tensors, key=lambda t: t.data_offset):
    if tensor.data_offset < end:
      raise ValueError(f"{tensor.name} begins inside of another tensor")
    if tensor.data_offset - end >= reader.alignment:
      raise ValueError(f"{tensor.data_offset - end} bytes before {tensor.name} belong to no tensor")
    end = tensor.data_offset + tensor.n_bytes
  if not 0 <= size - end < reader.alignment:
    raise ValueError(f"it has {size} bytes, and its tensors end at {end}")


def open_gguf(path: str) -> TensorFile:
  """Tensors under llama.cpp's names in torch's order of axes; `fetch` gives them in f32, whatever
  they are.

  Raises:
    UserError: for a file that cannot be read or that is damaged; by `fetch`, for an unknown
      quantisation.
  """
  import gguf  # here, for it is slow to import and seldom needed

  class Reader(gguf.GGUFReader):
    """Beyond its end a file has nothing; the package's own would go on, up to 2^64 times."""

    def _get(self, offset, dtype, count=1, *order, **named_order):
      found = super()._get(offset, dtype, count, *order, **named_order)
      if len(found) != count:
        raise ValueError("it ends too early")
      return found

  try:
    reader = Reader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if empty := [name for name, tensor in tensors.items() if tensor.n_elements == 0]:
      raise ValueError(f"{empty[0]} has no numbers")
    _check_places(reader, pathlib.Path(path).stat().st_size)
  except OSError as e:
    raise UserError(f"cannot read {path}: {e.strerror or e}") from e
  except Exception as e:
    raise UserError(f"{path} is no whole GGUF file: {e}") from e

  def fetch(name: str) -> np.ndarray:
    tensor = tensors[name]
    try:
      return gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as e:
      raise UserError(
        f"{path}: cannot read {name}, a tensor of type {tensor.tensor_type.name}"
      ) from e

  shapes = {name: tuple(reversed(tensor.shape.tolist())) for name, tensor in tensors.items()}
  return TensorFile(shapes, fetch, metadata)
