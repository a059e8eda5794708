"""Files of kilobytes that would take all time or memory: each is told in a line, at once."""

import io
import json
import os
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import pytest

from vlx.core.errors import UserError
from vlx.core.files import read_json
from vlx.pretrained.arctic import read_options
from vlx.pretrained.formats import files, pickles
from vlx.pretrained.formats.gguf import open_gguf
from vlx.pretrained.formats.npz import open_npz
from vlx.pretrained.formats.safetensors import open_safetensors, write_safetensors
from vlx.pretrained.formats.tf_bundle import open_tf_bundle
from vlx.pretrained.formats.torch_files import open_torch
from vlx.pretrained.load import open_checkpoint


def torch_zip(path, data_pkl, storage=bytes(16), **more):
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
    archive.writestr("x/data.pkl", data_pkl)
    archive.writestr("x/data/0", storage)
    for name, data in more.items():
      archive.writestr(f"x/{name}", data, zipfile.ZIP_DEFLATED)
  return path


def tensor(shape="I4\n", strides="I1\n", numbers=4):
  """The pickled tensor's operations; `persistent` ids are tuples, as torch's."""
  return (
    b"ctorch._utils\n_rebuild_tensor_v2\n("
    + f"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI{numbers}\nt".encode()
    + b"QI0\n"
    + f"({shape}t({strides}t".encode()
    + b"tR"
  )


def doubled(start, double, times=200):
  """Of memo: a value, and `times` over one that holds the last twice."""
  out = start + b"q\0"
  for _ in range(times):
    out += b"0" + double + b"q\0"
  return out


NESTED_TUPLES = doubled(b")", b"h\0h\0\x86")  # a hash of it is never done
NESTED_DICTS = lambda leaf: doubled(b"}S'w'\n" + leaf + b"s", b"}(S'a'\nh\0S'b'\nh\0u")


def test_a_tensor_is_read(tmp_path):
  file = open_torch(torch_zip(tmp_path / "x.pth", b"}S'w'\n" + tensor() + b"s."))
  np.testing.assert_array_equal(file.fetch("w"), np.zeros(4))


@pytest.mark.parametrize(
  "pickled",
  {
    "a tuple of tuples as a key": b"}" + NESTED_TUPLES + b"Ns.",
    "in many at once": b"}(" + NESTED_TUPLES + b"Nu.",
    "in a set": b"\x8f(" + NESTED_TUPLES + b"\x90.",
    "in a frozen set": b"(" + NESTED_TUPLES + b"\x91.",
    "in a set that is called": b"c__builtin__\nset\n((" + NESTED_TUPLES + b"ltR.",
    "in an ordered dict": b"ccollections\nOrderedDict\n(((" + NESTED_TUPLES + b"NlltR.",
    "as the kind of a storage": b"(" + NESTED_TUPLES + b"NNNNtQ.",
    "as the name of a storage": b"(S'storage'\nctorch\nFloatStorage\n"
    + NESTED_TUPLES
    + b"NI4\ntQ.",
    "dicts of dicts": NESTED_DICTS(tensor()) + b".",
    "dicts without end": b"}S'a'\n" * 100 + b"}S'w'\n" + tensor() + b"s" + b"s" * 100 + b".",
    "copies of copies": b"(" + b"N" * 5000 + b"lq\0" + b"ctorch\nSize\n(h\0tR0" * 3000 + b"].",
    "a tensor of few numbers and of any size": b"}S'w'\n"
    + tensor("I1000000\nI1000000\n", "I0\nI0\n")
    + b"s.",
    "a number of 10,000 digits": b"}S'w'\nI" + b"9" * 10_000 + b"\ns.",
    "a number of 10,000 digits in a shape": b"}S'w'\n"
    + tensor().replace(b"(I4\n", b"(\x8b" + struct.pack("<I", 5000) + b"\x01" * 5000)
    + b"s.",
  }.items(),
  ids=lambda item: item[0],
)
def test_pickles_without_end(tmp_path, pickled):
  _, data = pickled
  assert len(data) < 70_000
  with pytest.raises(UserError) as told:
    open_torch(torch_zip(tmp_path / "x.pth", data))
  assert "IndexError" not in str(told.value)  # it was a pickle


def test_long_numbers_are_no_keys(tmp_path):
  """Each hash takes as long as the number, and of 80 bits there are a million with one hash."""
  for key in (b"\x8b" + struct.pack("<I", 5000) + b"\1" * 5000, b"I%d\n" % (2**20 * (2**61 - 1))):
    data = b"}" + key + b"Ns."
    with pytest.raises(UserError, match="64 bits as a key"):
      open_torch(torch_zip(tmp_path / "x.pth", data))
  data = b"}I9223372036854775807\n" + tensor() + b"s."
  assert len(open_torch(torch_zip(tmp_path / "x.pth", data)).shapes) == 1


@pytest.mark.parametrize("name", [b"ctorch\nSize\n", b"c__builtin__\nset\n"])
def test_copies_of_a_text_are_counted(tmp_path, monkeypatch, name):
  monkeypatch.setattr(pickles, "MAX_COPIED", 10_000)
  text = b"X" + struct.pack("<I", 1000) + b"a" * 1000
  data = b"(" + text + b"q\0" + (name + b"(h\0tR") * 20 + b"l."
  with pytest.raises(UserError, match="more than a checkpoint has"):
    open_torch(torch_zip(tmp_path / "x.pth", data))


def test_a_dict_under_its_own_name(tmp_path):
  data = b"}q\0S'model'\nh\0sS'w'\n" + tensor() + b"s."
  assert open_torch(torch_zip(tmp_path / "x.pth", data)).shapes == {"w": (4,)}


def test_operations_are_counted(tmp_path, monkeypatch):
  monkeypatch.setattr(pickles, "MAX_OPERATIONS", 1000)
  with pytest.raises(UserError, match="1000 operations"):
    open_torch(torch_zip(tmp_path / "x.pth", b"]0" * 1000 + b"}."))


def test_options_of_a_tuple_of_tuples(tmp_path):
  (tmp_path / "x.npz.pkl").write_bytes(b"}" + NESTED_TUPLES + b"Ns.")
  with pytest.raises(UserError, match="a tuple as a key"):
    read_options(tmp_path / "x.npz")


def test_old_files_whose_storages_have_no_names(tmp_path):
  header = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}]
  parts = [pickle.dumps(x, protocol=2) for x in header]
  (tmp_path / "x.pth").write_bytes(b"".join(parts) + b"](" + NESTED_TUPLES + b"e.")
  with pytest.raises(UserError, match="a tuple as a key"):
    open_torch(tmp_path / "x.pth")


def test_the_byte_order_that_unpacks_to_megabytes(tmp_path):
  path = torch_zip(tmp_path / "x.pth", b"}S'w'\n" + tensor() + b"s.", byteorder=bytes(10**7))
  with pytest.raises(UserError, match="byte order"):
    open_torch(path)


def encrypted(path):
  """The same zip with the flag of a password on every member."""
  data = bytearray(path.read_bytes())
  for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
    where = -1
    while (where := data.find(signature, where + 1)) >= 0:
      data[where + at] |= 1
  path.write_bytes(data)
  return path


def test_zips_with_a_password(tmp_path):
  np.savez(tmp_path / "x.npz", a=np.zeros(3))
  torch_zip(tmp_path / "x.pth", b"}S'w'\n" + tensor() + b"s.")
  for opener, name in ((open_npz, "x.npz"), (open_torch, "x.pth")):
    with pytest.raises(UserError, match="it is encrypted"):
      opener(encrypted(tmp_path / name))


def npy(header_size, shape=(), version=2):
  header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".ljust(header_size - 1)
  size = struct.pack("<I" if version == 2 else "<H", header_size)
  return b"\x93NUMPY" + bytes([version, 0]) + size + header.encode() + b"\n" + bytes(4)


def test_a_header_of_npz_that_unpacks_to_megabytes(tmp_path):
  with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("a.npy", npy(64))
  assert open_npz(tmp_path / "x.npz").shapes == {"a": ()}
  with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("a.npy", npy(10**7))
  with pytest.raises(UserError, match="a header of more than"):
    open_npz(tmp_path / "x.npz")


@pytest.mark.parametrize(
  ("said", "told"), [(1 << 40, "unpack to"), ((1 << 40) + 3, "the whole file has|unpack to")]
)
def test_members_that_say_they_have_terabytes(tmp_path, said, told, monkeypatch):
  np.savez_compressed(tmp_path / "x.npz", a=np.zeros(100_000))
  original = zipfile.ZipFile.infolist

  def infolist(self):  # what a directory of 64 bits says
    members = original(self)
    members[0].file_size = said
    members[0].compress_size += said % 2 and said
    return members

  monkeypatch.setattr(zipfile.ZipFile, "infolist", infolist)
  with pytest.raises(UserError, match=told):
    open_npz(tmp_path / "x.npz")


def test_zips_of_many_members_and_of_equal_names(tmp_path, monkeypatch):
  np.savez(tmp_path / "x.npz", **{str(i): np.zeros(1) for i in range(9)})
  with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive:
    archive.writestr("a.npy", npy(64))
    with pytest.warns(UserWarning, match="Duplicate"):
      archive.writestr("a.npy", npy(64))
  with pytest.raises(UserError, match="a name stands in it twice"):
    open_npz(tmp_path / "y.npz")
  monkeypatch.setattr(files, "MAX_MEMBERS", 8)
  with pytest.raises(UserError, match="it has 9 members"):
    open_npz(tmp_path / "x.npz")


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_bytes_that_are_damaged(tmp_path, how):
  out = io.BytesIO()
  np.save(out, np.random.default_rng(0).random(2000))
  for name, member, opener in (("x.npz", "a.npy", open_npz), ("x.pth", "x/byteorder", open_torch)):
    path = torch_zip(tmp_path / name, b"}S'w'\n" + tensor() + b"s.")
    with zipfile.ZipFile(path, "a" if name == "x.pth" else "w") as archive:
      archive.writestr(member, out.getvalue(), how)
    with zipfile.ZipFile(path) as archive:
      at = archive.getinfo(member).header_offset + 30 + len(member)
    for first in (0, 3, 5000):  # not a header of bzip2's alone
      data = bytearray(path.read_bytes())
      data[at + first : at + first + 30] = bytes(
        b ^ 0xA5 for b in data[at + first : at + first + 30]
      )
      (tmp_path / f"damaged{path.suffix}").write_bytes(data)
      with pytest.raises(UserError):
        file = opener(tmp_path / f"damaged{path.suffix}")
        file.fetch("a")


@pytest.mark.parametrize("kind", ["complex64", "U3", "S2", "M8[D]", "V3", "f4,i4"])
def test_arrays_of_npz_that_are_no_numbers(tmp_path, kind):
  """jax.numpy would drop the half of complex ones without an error."""
  np.savez(tmp_path / "x.npz", a=np.zeros(3, kind))
  with pytest.raises(UserError, match="which no network's arrays do"):
    open_npz(tmp_path / "x.npz")


SHAPES = ([1] * 40, [0] * 40, [0, 2**40, 2**40], [2**47] * 3 + [0])


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_that_numpy_has_not(tmp_path, shape):
  """Of empty arrays too, which agree with any number of bytes."""
  data = bytes(0 if 0 in shape else 4)
  header = json.dumps({"a": dict(dtype="F32", shape=shape, data_offsets=[0, len(data)])}).encode()
  (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
  with pytest.raises(UserError, match="malformed"):
    open_safetensors(tmp_path / "x.safetensors")
  with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
    archive.writestr("a.npy", npy(400, tuple(shape))[: None if data else -4])
  with pytest.raises(UserError, match="no sensible shape"):
    open_npz(tmp_path / "x.npz")
  numbers = "".join(f"I{n}\n" for n in shape)
  with pytest.raises(UserError, match="no sensible shape"):
    open_torch(torch_zip(tmp_path / "x.pth", b"}S'w'\n" + tensor(numbers, numbers) + b"s."))


def test_strides_that_numpy_has_not(tmp_path):
  with pytest.raises(UserError, match="no sensible shape"):
    open_torch(torch_zip(tmp_path / "x.pth", b"}S'w'\n" + tensor("I1\n", f"I{2**62}\n") + b"s."))


def test_shapes_of_thousands_of_axes_are_none():
  assert files.is_shape([1, 2]) and not files.is_shape([2] * 10_000)
  assert not files.is_shape([1 << 63])
  assert files.is_shape([2**15, 0, 2**20]) and files.is_shape([])


@pytest.mark.timeout(10)  # a pipe is waited for
@pytest.mark.parametrize(
  "opener", [open_safetensors, open_torch, open_npz, open_gguf, open_tf_bundle, read_json]
)
def test_pipes_and_devices_are_no_files(tmp_path, opener):
  os.mkfifo(tmp_path / "x.index")
  for path in (tmp_path / "x.index", pathlib.Path("/dev/zero"), tmp_path):
    with pytest.raises(UserError, match="no ordinary file"):
      opener(path)
  with pytest.raises(UserError, match="No such file"):
    opener(tmp_path / "y.index")


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
  "name, beside",
  [
    ("model.safetensors", {}),
    ("a.npz", {}),
    ("a.safetensors", {"model.safetensors.index.json": {"weight_map": {"a": "a.safetensors"}}}),
    (
      "consolidated.00.pth",
      {"params.json": dict(dim=8, n_layers=2, n_heads=2, multiple_of=4, norm_eps=1e-5)},
    ),
    ("x.ckpt.index", {"bert_config.json": {}}),
  ],
)
def test_a_folder_whose_weights_are_a_pipe(tmp_path, name, beside):
  os.mkfifo(tmp_path / name)
  for file, content in beside.items():
    (tmp_path / file).write_text(json.dumps(content))
  for path in (tmp_path, tmp_path / name):
    with pytest.raises(UserError, match="no ordinary file"):
      open_checkpoint(path)


def test_a_name_that_no_file_system_has():
  for name in ("a" * 250, "a" * 300, "a/" * 5000):
    with pytest.raises(UserError, match="cannot read"):
      open_checkpoint(name)


@pytest.mark.parametrize(
  "name",
  [
    "x.safetensors.index.json",
    "../x.safetensors",
    "/x.safetensors",
    "..",
    "",
    ".",
    "a\0b",
    "\ud800.safetensors",
    "a" * 300 + ".safetensors",
  ],
)
def test_an_index_names_files_beside_it(tmp_path, name):
  index = tmp_path / "model.safetensors.index.json"
  write_safetensors(tmp_path / "x.safetensors", {}, [])
  for text in (name, name and index.name):
    index.write_text(json.dumps({"weight_map": {"a": text}}))
    with pytest.raises(UserError):
      open_checkpoint(tmp_path)


def gguf_of(path, kind, count, data):
  """A file with one list in its metadata."""
  key = b"general.x"
  head = struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, len(key)) + key
  whole = head + struct.pack("<IIQ", 9, kind, count) + data
  path.write_bytes(whole + bytes(-len(whole) % 32))
  return path


def test_lists_of_a_gguf_that_no_vocabulary_has(tmp_path, monkeypatch):
  monkeypatch.setattr("vlx.pretrained.formats.gguf._MAX_ITEMS", 1000)
  assert list(open_gguf(gguf_of(tmp_path / "x.gguf", 0, 900, bytes(900))).metadata)
  with pytest.raises(UserError, match="nested, or longer"):
    open_gguf(gguf_of(tmp_path / "x.gguf", 0, 2000, bytes(2000)))
  nested = struct.pack("<IQ", 9, 1) * 50 + struct.pack("<IQ", 0, 4) + bytes(4)
  with pytest.raises(UserError, match="nested, or longer"):
    open_gguf(gguf_of(tmp_path / "x.gguf", 9, 1, nested))
  with pytest.raises(UserError, match="no whole GGUF"):
    open_gguf(gguf_of(tmp_path / "x.gguf", 0, 1 << 62, bytes(10)))
