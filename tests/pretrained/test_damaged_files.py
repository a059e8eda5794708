"""Files whose parts contradict each other: other numbers in silence are the worst that a reader can
give.
"""

import io
import pathlib
import zipfile

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from vlx.core.errors import UserError
from vlx.pretrained.formats.gguf import open_gguf
from vlx.pretrained.formats.npz import open_npz
from vlx.pretrained.formats.safetensors import open_safetensors
from vlx.pretrained.formats.torch_files import open_torch

PARITY = pathlib.Path(__file__).parents[1] / "parity"


def rewritten(source, path, change):
  """A zip with other members: change(name, bytes) → bytes."""
  with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
    for name in old.namelist():
      new.writestr(name, change(name, old.read(name)))


@pytest.mark.parametrize("by", (-4, 4))
def test_a_storage_of_torchs_that_is_not_as_long_as_it_says(tmp_path, by):
  """Shorter, the bytes that follow in the zip would be weights."""

  def change(name, data):
    if "/data/" not in name:
      return data
    return data[:by] if by < 0 else data + bytes(by)

  rewritten(PARITY / "torch_zip.pth", tmp_path / "x.pth", change)
  with pytest.raises(UserError, match="says that its data has"):
    open_torch(tmp_path / "x.pth")


@pytest.mark.parametrize("length", (0, 1, 10**6))
def test_a_legacy_storage_whose_length_is_not_the_pickles(tmp_path, length):
  data = bytearray((PARITY / "torch_legacy.pth").read_bytes())
  found = open_torch(PARITY / "torch_legacy.pth")
  name = next(n for n, shape in found.shapes.items() if np.prod(shape) > 1)
  values = found.fetch(name)
  where = data.index(np.ascontiguousarray(values).tobytes())
  data[where - 8 : where] = length.to_bytes(8, "little")
  (tmp_path / "x.pth").write_bytes(data)
  with pytest.raises(UserError):
    open_torch(tmp_path / "x.pth")


@pytest.mark.parametrize("by", (-8, 8))
def test_a_member_of_npz_that_is_not_as_long_as_its_header_says(tmp_path, by):
  np.savez(tmp_path / "whole.npz", a=np.arange(6.0))
  change = lambda name, data: data[:by] if by < 0 else data + bytes(by)
  rewritten(tmp_path / "whole.npz", tmp_path / "x.npz", change)
  with pytest.raises(UserError, match="its header says"):
    open_npz(tmp_path / "x.npz")


def test_a_header_of_npz_that_claims_terabytes(tmp_path):
  out = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    out, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
  )
  with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
    archive.writestr("a.npy", out.getvalue())
  with pytest.raises(UserError, match="its header says"):
    open_npz(tmp_path / "x.npz")


def test_a_name_that_stands_twice_in_safetensors(tmp_path):
  save_file({"a": np.zeros(4, np.float32), "b": np.ones(4, np.float32)}, tmp_path / "x")
  data = (tmp_path / "x").read_bytes()
  size = int.from_bytes(data[:8], "little")
  header = data[8 : 8 + size].replace(b'"b":', b'"a":')
  (tmp_path / "x").write_bytes(data[:8] + header + data[8 + size :])
  with pytest.raises(UserError, match="stands in it twice"):
    open_safetensors(tmp_path / "x")


@pytest.fixture
def whole_gguf(tmp_path):
  writer = gguf.GGUFWriter(tmp_path / "whole.gguf", "llama")
  for name in ("first", "second"):
    writer.add_tensor(name, np.arange(64, dtype=np.float32).reshape(2, 32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return tmp_path / "whole.gguf"


def test_gguf_with_tensors_that_overlap_or_bytes_of_none(whole_gguf, tmp_path):
  file = open_gguf(str(whole_gguf))
  np.testing.assert_array_equal(file.fetch("second"), np.arange(64.0).reshape(2, 32))
  data = whole_gguf.read_bytes()
  # The offset of the second tensor, 256, is the last number of its entry.
  where = data.index(b"second") + 6 + 4 + 2 * 8 + 4
  assert int.from_bytes(data[where : where + 8], "little") == 256
  for offset in (0, 32, 224):
    changed = data[:where] + offset.to_bytes(8, "little") + data[where + 8 :]
    (tmp_path / "x.gguf").write_bytes(changed)
    with pytest.raises(UserError, match="inside of another|its tensors end at"):
      open_gguf(str(tmp_path / "x.gguf"))
  (tmp_path / "x.gguf").write_bytes(data + bytes(4096))
  with pytest.raises(UserError, match="its tensors end at"):
    open_gguf(str(tmp_path / "x.gguf"))
