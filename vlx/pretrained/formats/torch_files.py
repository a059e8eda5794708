"""Reads files of `torch.save` (`.pth`, `.pt`, `.bin`, `.ckpt`) without torch, and without running what
lies in them.

Three formats go by these names. Since torch 1.6 a file is a zip of `data.pkl` and the storages
(torch/csrc, "caffe2 serialize"); before, five pickles and the storages one after another
(torch/serialization.py, `_legacy_save`); and a TorchScript archive (OpenAI's CLIPs) is a zip whose
pickle holds modules. Where a module was saved whole (OpenAI's dVAE), its classes are names and
nothing more. A tensor is a view of a storage: an offset, a size, strides.
"""

import itertools
import math
import pathlib
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from vlx.core.errors import UserError
from vlx.core.files import check_ordinary
from vlx.pretrained.fields import shown
from vlx.pretrained.formats import TensorFile, pickles
from vlx.pretrained.formats.files import (
  BAD_BYTES,
  are_sizes,
  check_members,
  dtype_named,
  is_shape,
  read_array,
)

STORAGES = {
  "Double": "float64",
  "Float": "float32",
  "Half": "float16",
  "BFloat16": "bfloat16",
  "Long": "int64",
  "Int": "int32",
  "Short": "int16",
  "Char": "int8",
  "Byte": "uint8",
  "Bool": "bool",
}
_STORAGES = {f"torch.{public}Storage": ours for public, ours in STORAGES.items()}
_DICT = "collections.OrderedDict"
_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_PARAMETER = "torch._utils._rebuild_parameter"
_TYPED = "torch.jit._pickle.restore_type_tag"
_LISTS = tuple(
  f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")
)
_SET, _DEVICE = ("__builtin__.set", "builtins.set"), "torch.device"
_ADMITTED = {
  *_STORAGES,
  *_TENSORS,
  *_LISTS,
  *_SET,
  _DICT,
  _DEVICE,
  _PARAMETER,
  _TYPED,
  "torch.Size",
}
# Classes of modules, of which the attributes alone are read: TorchScript's, torch's, those of
# OpenAI's dVAE.
_MODULES = (
  "__torch__.",
  "torch.nn.modules.",
  "dall_e.encoder.",
  "dall_e.decoder.",
  "dall_e.utils.",
)

# Far more than any checkpoint has. A dict that stands in itself many times over names tensors without
# end, and a tensor of few bytes may say that it has any size.
_MAX_VISITS, _MAX_DEPTH, _MAX_NAME, _FREE_NUMBERS = 10**6, 50, 4096, 10**8

# Where training scripts put the weights among what else they keep.
WEIGHTS = ("state_dict", "model_state_dict", "model")

_ZIP, _LEGACY_MAGIC, _LEGACY_PROTOCOL = b"PK\x03\x04", 0x1950A86A20F9469CFC6C, 1001


class _Storage(NamedTuple):
  key: str
  dtype: np.dtype
  first: int  # elements before it, where it is a part of another
  length: int
  is_part: bool


class _Span(NamedTuple):
  """Bytes of a file."""

  start: int
  size: int


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]  # in elements


def open_torch(path: pathlib.Path) -> TensorFile:
  """The tensors of a state dict, or of a module that TorchScript wrote.

  The weights may lie under one of `WEIGHTS`; in other nested dicts names are joined by dots.

  Raises:
    UserError: for a file of another kind, a damaged one, one that holds more than tensors, numbers
      and containers.
  """
  check_ordinary(path)
  try:
    with open(path, "rb") as f:
      is_zip = f.read(4) == _ZIP
      f.seek(0)
      value, spans = _read_zip(path) if is_zip else _read_legacy(f)
      tensors = _weights(value)
      size = f.seek(0, 2)
  except OSError as e:
    raise UserError(f"cannot read {path}: {e.strerror or e}") from e
  except pickles.Refused as e:
    raise UserError(
      f"{path} holds {e}, which is no tensor, number or container; nothing of it was run"
    ) from e
  except (ValueError, OverflowError, KeyError, AttributeError, TypeError) as e:
    raise UserError(f"{path} is no file of torch's, or cut off or damaged: {e}") from e
  if not tensors:
    raise UserError(f"{path} holds no tensors under names")
  for name, tensor in tensors.items():
    _check(path, name, tensor, spans, size)
  if (count := sum(math.prod(tensor.shape) for tensor in tensors.values())) > max(
    _FREE_NUMBERS, 10 * size
  ):
    raise UserError(f"{path} has {size} bytes and says that its tensors have {count} numbers")

  def fetch(name):
    storage, offset, shape, strides = tensors[name]
    # No more than what the tensor reaches: many may share one storage.
    reach = _reach(shape, strides)
    start = spans[storage.key].start + (storage.first + offset) * storage.dtype.itemsize
    flat = read_array(path, storage.dtype, start, (reach,))
    steps = [n * storage.dtype.itemsize for n in strides]
    return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)

  return TensorFile({name: tensor.shape for name, tensor in tensors.items()}, fetch)


def _reach(shape, strides) -> int:
  """From the first element to the last, both counted."""
  return 1 + sum((n - 1) * step for n, step in zip(shape, strides)) if math.prod(shape) else 0


def _check(path, name, tensor, spans, size) -> None:
  """Every element must lie in the storage, the storage must be as long as the file says, and lie in
  it.
  """
  storage = tensor.storage
  if storage.key not in spans:
    raise UserError(f"{path} has no data for {name}")
  span, needed = spans[storage.key], (storage.first + storage.length) * storage.dtype.itemsize
  if needed > span.size or (needed < span.size and not storage.is_part):
    raise UserError(f"{path}: {name} says that its data has {needed} bytes, the file {span.size}")
  if tensor.offset + _reach(tensor.shape, tensor.strides) > storage.length:
    raise UserError(f"{path}: {name} reaches beyond its data")
  if span.start + span.size > size:
    raise UserError(f"{path} ends within {name}: it is cut off or damaged")


def _weights(value: Any) -> dict[str, _Tensor]:
  for _ in range(_MAX_DEPTH):
    if not isinstance(value, Mapping):
      break
    inner = next(
      (
        value[k]
        for k in WEIGHTS
        if isinstance(value.get(k), dict) and any(_named(value[k], itertools.count()))
      ),
      None,
    )
    if inner is None:
      break
    value = inner
  return dict(_named(value, itertools.count()))


def _named(
  value: Any, visits: Iterator[int], prefix: str = "", above: tuple[int, ...] = ()
) -> Iterator[tuple[str, _Tensor]]:
  """The tensors in nested dicts and modules; `visits` counts all values that are looked at."""
  if next(visits) > _MAX_VISITS or len(above) > _MAX_DEPTH or len(prefix) > _MAX_NAME:
    raise ValueError("its dicts are nested without end")
  if isinstance(value, pickles.Module) and "_modules" in value:  # one that was saved whole
    value = {
      name: x for part in ("_parameters", "_buffers", "_modules") for name, x in value[part].items()
    }
  if isinstance(value, _Tensor):
    yield prefix, value
  elif isinstance(value, dict) and id(value) not in above:  # a dict in itself is possible too
    for name, inner in value.items():
      path = f"{prefix}.{name}" if prefix else str(name)
      yield from _named(inner, visits, path, (*above, id(value)))


# Pickles.


def _admitted(name: str) -> bool:
  return name in _ADMITTED or name.startswith(_MODULES)


def _call(what: pickles.Global, arguments: tuple) -> Any:
  name = what.name
  if name.startswith(_MODULES):
    return pickles.Module()
  if name in _SET:
    return set(*map(pickles.keys, arguments))
  if name == _DEVICE:
    return None
  if name == _DICT:
    return _dict(*arguments)
  if name in _TENSORS:
    return _tensor(*arguments[:4])
  if name == "torch.Size" or name in _LISTS:
    return tuple(arguments[0])
  if name in (_PARAMETER, _TYPED):
    return arguments[0]
  raise pickles.Refused(f"a call of {name}")


def _dict(pairs=()) -> dict:
  """Of a list of pairs, as pickles of Python 2's ordered dicts have, or empty."""
  found = [(key, value) for key, value in pairs]
  return dict(zip(pickles.keys([key for key, _ in found]), (value for _, value in found)))


def _tensor(storage, offset, shape, strides) -> _Tensor:
  if (
    not isinstance(storage, _Storage)
    or not is_shape(shape)
    or not are_sizes((offset, *strides))
    or len(shape) != len(strides)
  ):
    raise pickles.Refused("a tensor of no sensible shape")
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _storage(pid) -> _Storage | pickles.Global:
  if pid[0] == "module":  # before torch 1.6: the class of a module, and its source
    return pid[1]
  kind, storage, key, _, length, *view = pid
  if kind != "storage" or not isinstance(storage, pickles.Global):
    raise pickles.Refused(f"an object of the kind {shown(kind)}")
  if storage.name not in _STORAGES:
    raise pickles.Refused(storage.name)
  first = 0
  if view and view[0] is not None:
    _, first, length = view[0]
  if not isinstance(key, (str, int)):
    raise pickles.Refused("a storage without a name")
  if not are_sizes((first, length)):
    raise pickles.Refused("a storage of no sensible length")
  is_part = bool(view) and view[0] is not None
  return _Storage(str(key), dtype_named(_STORAGES[storage.name]), first, length, is_part)


def _read_zip(path) -> tuple[Any, dict[str, _Span]]:
  """The value of `data.pkl`, and where the bytes of each storage are."""
  try:
    with zipfile.ZipFile(path) as archive, open(path, "rb") as f:
      check_members(archive)
      entries = {entry.filename: entry for entry in archive.infolist()}
      (pickle,) = (name for name in entries if name.endswith("data.pkl") and name.count("/") <= 1)
      folder = pickle.removesuffix("data.pkl")
      data = f"{folder}data/"
      # TorchScript compresses its code, which nobody reads here.
      if any(
        e.compress_type for name, e in entries.items() if name == pickle or name.startswith(data)
      ):
        raise UserError(f"{path} is compressed, which torch does not do")
      order = f"{folder}byteorder"
      if order in entries and archive.open(order).read(10) != b"little":
        raise UserError(f"{path} is in the byte order of another machine")
      with archive.open(pickle) as f_pickle:
        value = pickles.read(f_pickle, _admitted, _call, _storage)
      ordered = sorted(entries.values(), key=lambda e: e.header_offset)
      ends = [*(e.header_offset for e in ordered[1:]), archive.start_dir]
      spans = {
        e.filename.removeprefix(data): _Span(_start(f, e, end), e.file_size)
        for e, end in zip(ordered, ends)
        if e.filename.startswith(data)
      }
      return value, spans
  except (zipfile.BadZipFile, *BAD_BYTES) as e:
    raise UserError(f"{path} is no file of torch's, or cut off or damaged: {e}") from e


def _start(f, entry, end: int) -> int:
  """Where the bytes of an entry of a zip stand: behind its own header, whose length varies, and up to
  the next entry's, at `end`, or to what describes them once more.

  Where bytes are missing before, the header is not where the directory says.
  """
  f.seek(entry.header_offset)
  header = f.read(30)
  name, more = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
  if header[:4] != _ZIP or f.read(name) != entry.orig_filename.encode():
    raise ValueError(f"{entry.filename} is not where it says")
  start = entry.header_offset + 30 + name + more
  if end - start - entry.file_size not in ((12, 16, 20, 24) if entry.flag_bits & 8 else (0,)):
    raise ValueError(f"{entry.filename} is not as long as the place that it has")
  return start


def _read_legacy(f) -> tuple[Any, dict[str, _Span]]:
  """The same, of a file from before torch 1.6."""
  sizes: dict[str, int] = {}  # bytes of an element, by storage

  def storage(pid):
    found = _storage(pid)
    if isinstance(found, _Storage):
      sizes[found.key] = found.dtype.itemsize
    return found

  read = lambda persistent=_storage: pickles.read(f, _admitted, _call, persistent)
  if read() != _LEGACY_MAGIC or read() != _LEGACY_PROTOCOL:
    raise pickles.Refused("no pickle of torch's")
  if not read().get("little_endian", True):
    raise pickles.Refused("the byte order of another machine")
  value, spans = read(storage), {}
  for key in pickles.keys(read()):
    length = int.from_bytes(f.read(8), "little")
    spans[str(key)] = _Span(f.tell(), length * sizes[str(key)])
    f.seek(spans[str(key)].size, 1)
  if f.read(1):
    raise ValueError("bytes behind its last numbers belong to none")
  return value, spans
