"""Writes TensorFlow's checkpoints, right ones and those that lie."""

import os
import struct

import numpy as np

from vlx.pretrained.formats.crc32c import crc32c

DATA = "bert_model.ckpt.data-00000-of-00001"


def varint(number):
  out = b""
  while number > 127:
    out, number = out + bytes([number & 127 | 128]), number >> 7
  return out + bytes([number])


def masked(data):
  crc = crc32c(np.frombuffer(data, np.uint8))
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def block(entries):
  """A block in which keys share what they can, and its trailer."""
  out, last = bytearray(), b""
  for key, value in entries:
    shared = len(os.path.commonprefix([last, key]))
    out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
    last = key
  out += struct.pack("<II", 0, 1)
  return out, b"\0" + struct.pack("<I", masked(out + b"\0"))


def table(entries, per_block=4):
  meta, trailer = block([])
  data, index = meta + trailer, []
  for first in range(0, len(entries), per_block):
    part = entries[first : first + per_block]
    content, trailer = block(part)
    index.append((part[-1][0], varint(len(data)) + varint(len(content))))
    data += content + trailer
  content, trailer = block(index)
  footer = varint(0) + varint(len(meta)) + varint(len(data)) + varint(len(content))
  magic = (0xDB4775248B80FB57).to_bytes(8, "little")
  return data + content + trailer + footer.ljust(40, b"\0") + magic


def field(number, value):
  if isinstance(value, bytes):
    return varint(number << 3 | 2) + varint(len(value)) + value
  return varint(number << 3) + varint(value)


def entry(x, offset, *, kind=1, shape=None, size=None, shard=0, crc=True, more=b""):
  dims = b"".join(field(2, field(1, n)) for n in (x.shape if shape is None else shape))
  out = field(1, kind) + field(2, dims) + field(3, shard) + field(4, offset)
  out += field(5, x.nbytes if size is None else size)
  return out + (varint(6 << 3 | 5) + struct.pack("<I", masked(x.tobytes())) if crc else b"") + more


HEADER = (b"", field(1, 1) + field(3, field(1, 1)))


def write(folder, tensors):
  data, entries = b"", [HEADER]
  for name in sorted(tensors):
    x = np.asarray(tensors[name])
    entries.append((name.encode(), entry(x, len(data), kind={"f": 1, "i": 9}[x.dtype.kind])))
    data += x.tobytes()
  (folder / DATA).write_bytes(data)
  (folder / "bert_model.ckpt.index").write_bytes(table(entries))
