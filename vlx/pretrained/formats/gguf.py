"""GGUF, llama.cpp's format: tensors, most of them quantised, and metadata with the tokenizer in it.

Read by the package `gguf`, which takes a file as it is; what makes no sense to it is the file's
fault here.
"""

import pathlib
import re
from collections.abc import Sequence

import numpy as np

from vlx.core.errors import UserError
from vlx.core.files import check_ordinary
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
  if size not in (end, end + -end % reader.alignment):
    raise ValueError(f"it has {size} bytes, and its tensors end at {end}")


_MAX_ITEMS = 2 * 10**6  # of all lists together; a vocabulary of 128,256 has 660,000

# llama.cpp's names of the parts of a model (its `llama_split_path`), which are counted from 1 here
# and from 0 in their metadata.
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


def open_gguf(path: str | pathlib.Path) -> TensorFile:
  """Tensors under llama.cpp's names in torch's order of axes; `fetch` gives them in f32, whatever
  they are.

  Of a model that is split the path may be of any part: all are read, and must lie beside it.

  Raises:
    UserError: for a file that cannot be read or that is damaged, and where parts are missing or do
      not belong together; by `fetch`, for an unknown quantisation.
  """
  path = pathlib.Path(path)
  file = _open_one(path)
  number, count = _place(path, file)
  if count == 1:
    return file
  names = part_names(path, count)
  if missing := [name for name in names if not (path.parent / name).is_file()]:
    raise UserError(
      f"{path} is part {number} of {count} of a model; beside it there is no {', '.join(missing)}"
    )
  parts = [_open_one(path.parent / name) for name in names]
  for i, (name, part) in enumerate(zip(names, parts), 1):
    if _place(path.parent / name, part) != (i, count):
      raise UserError(f"{path.parent / name} is not part {i} of {count}, as its name says")
  holders = {name: part for part in parts for name in part.shapes}
  total = parts[0].metadata.get("split.tensors.count", len(holders))
  if len(holders) != total or len(holders) < sum(len(part.shapes) for part in parts):
    raise UserError(f"the parts of {path} do not hold {total} tensors, each once")
  return TensorFile(
    {name: part.shapes[name] for name, part in holders.items()},
    lambda name: holders[name].fetch(name),
    parts[0].metadata,
  )


def part_names(path: pathlib.Path, count: int) -> list[str]:
  """The files of all parts of a model, of which a path is one.

  Raises:
    UserError: for a path that has no such name.
  """
  if (match := _PART.fullmatch(path.name)) is None or int(match[3]) != count:
    raise UserError(
      f"{path} is one of {count} parts of a model: they must be called NAME-00001-of-{count:05}.gguf"
      " and so on, as they were, or be joined (llama-gguf-split --merge)"
    )
  return [f"{match[1]}-{i:05}-of-{count:05}.gguf" for i in range(1, count + 1)]


def first_part(files: Sequence[pathlib.Path]) -> pathlib.Path | None:
  """The first of files that are the parts of one model by their names; None where they are not."""
  matches = [_PART.fullmatch(file.name) for file in files]
  if not all(matches) or len({(match[1], match[3]) for match in matches}) != 1:
    return None
  return min(files)


def _place(path: pathlib.Path, file: TensorFile) -> tuple[int, int]:
  """(which part it is, from 1, of how many)."""
  number, count = (file.metadata.get(f"split.{name}", i) for name, i in (("no", 0), ("count", 1)))
  count = count or 1  # of a model that was joined again
  if not (type(number) is type(count) is int and 0 <= number < count < 100_000):
    raise UserError(f"{path} says that it is part {number!r} of {count!r}")
  return number + 1, count


def _open_one(path: pathlib.Path) -> TensorFile:
  """A file, as it stands."""
  import gguf  # here, for it is slow to import and seldom needed

  class Reader(gguf.GGUFReader):
    """Beyond its end a file has nothing; the package's own would go on, up to 2^64 times."""

    def _get(self, offset, dtype, count=1, *order, **named_order):
      found = super()._get(offset, dtype, count, *order, **named_order)
      if len(found) != count:
        raise ValueError("it ends too early")
      return found

    def _get_field_parts(self, orig_offs, raw_type):
      """A number or a text is an object each: arrays of arrays, and of more than vocabularies hold,
      would fill memory.
      """
      if raw_type == gguf.GGUFValueType.ARRAY:
        kind, count = self._get(orig_offs, np.uint32)[0], self._get(orig_offs + 4, np.uint64)[0]
        self.array_items = getattr(self, "array_items", 0) + int(count)
        if kind == gguf.GGUFValueType.ARRAY or self.array_items > _MAX_ITEMS:
          raise ValueError("its lists are nested, or longer than those of vocabularies")
      return super()._get_field_parts(orig_offs, raw_type)

  try:
    check_ordinary(path)
    reader = Reader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if empty := [name for name, tensor in tensors.items() if tensor.n_elements == 0]:
      raise ValueError(f"{empty[0]} has no numbers")
    _check_places(reader, pathlib.Path(path).stat().st_size)
  except UserError:
    raise
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
