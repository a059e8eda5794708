"""Damage of bytes, JSON, zips, tars and more, drawn by a generator: `f(content, rng)` gives its kind
and what the content became. Equal generators give equal damage.
"""

import copy
import io
import json
import tarfile
import warnings
import zipfile

import numpy as np

# What may stand in JSON where something else belongs. `@…` are texts that JSON's writer does not write.
ODD = {
  "null": None,
  "true": True,
  "false": False,
  "zero": 0,
  "one": 1,
  "negative": -1,
  "fraction": 0.37,
  "2^31": 2**31,
  "2^63": 2**63,
  "10^30": 10**30,
  "1e308": 1e308,
  "1e-308": 1e-308,
  "NaN": float("nan"),
  "infinity": float("inf"),
  "digits": "@digits",
  "empty text": "",
  "text": "x",
  "number as text": "12",
  "surrogate": "\ud800",
  "null character": "a\0b",
  "path": "../../etc/passwd",
  "long text": "ab" * 100_000,
  "empty list": [],
  "list": [1, "x", None],
  "lists": [[[]]],
  "long list": [0] * 10_000,
  "axes": [1] * 40,
  "sizes": [0, 2**40, 2**40],
  "empty object": {},
  "object": {"x": 1, "type": []},
  "depth": "@depth",
  "some depth": "@some depth",
}
_TEXTS = {
  "@digits": "9" * 5_000,
  "@depth": "[" * 50_000 + "]" * 50_000,
  "@some depth": "[" * 970 + "]" * 970,
}
_EDGES = (0, 1, 2, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63)


def of_bytes(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
  kind = _one(rng, _OF_BYTES)
  return kind, _OF_BYTES[kind](bytearray(data), rng)


def of_json(value, rng: np.random.Generator) -> tuple[str, bytes]:
  """Damages one or two places of a value; gives the text."""
  value, kinds = copy.deepcopy(value), []
  for _ in range(1 + (rng.random() < 0.2)):
    kind, value = _changed(value, rng)
    kinds.append(kind)
  text = json.dumps(value)
  for name, written in _TEXTS.items():
    text = text.replace(json.dumps(name), written)
  return "+".join(sorted(kinds)), text.encode()


def of_zip(data: bytes, rng: np.random.Generator, member=of_bytes) -> tuple[str, bytes]:
  """Damages a member, whose checksum is then right, or which there are."""
  kind, found = _of_members(members(data), rng, member)
  deflated = rng.random() < 0.05
  return f"zip: {kind}", zipped(found, zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED)


def members(data: bytes) -> list[tuple[str, bytes]] | None:
  """(name, content) of a zip's members; None where it is no zip."""
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
  except Exception:  # damaged
    return None


def zipped(found: list[tuple[str, bytes]], how=zipfile.ZIP_STORED) -> bytes:
  out = io.BytesIO()
  with warnings.catch_warnings(), zipfile.ZipFile(out, "w", how) as archive:
    warnings.simplefilter("ignore")  # a name that stands twice
    for name, content in found:
      archive.writestr(name, content)
  return out.getvalue()


def of_tar(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
  """The same of a tar; sometimes a member is a link, a folder or a device."""
  with tarfile.open(fileobj=io.BytesIO(data)) as archive:
    found = [(m.name, archive.extractfile(m).read()) for m in archive if m.isfile()]
  kind, found = _of_members(found, rng, of_bytes)
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode="w") as archive:
    for name, content in found:
      entry = tarfile.TarInfo(name)
      entry.size = len(content)
      if rng.random() < 0.1:
        entry.type = _one(
          rng, (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
        )
        entry.linkname, entry.size, content = "/etc/passwd", 0, b""
        kind += "+type"
      archive.addfile(entry, io.BytesIO(content))
  return f"tar: {kind}", out.getvalue()


def of_tar_header(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
  """Damages a header of a tar, whose checksum is then right; sometimes it is of another kind."""
  with tarfile.open(fileobj=io.BytesIO(data)) as archive:
    at = _one(rng, [member.offset for member in archive])
  kind, header = of_bytes(data[at : at + 512], rng)
  header = bytearray(header[:512].ljust(512, b"\0"))
  if rng.random() < 0.3:
    header[156:157] = _one(rng, (b"L", b"K", b"x", b"g", b"S", b"1", b"2", b"5"))
  header[148:156] = b" " * 8
  header[148:156] = b"%06o\0 " % sum(header)
  return f"tar header: {kind}", data[:at] + bytes(header) + data[at + 512 :]


def of_lines(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
  """Damages a line of text, JSON where it is that, or the order of lines."""
  lines = data.split(b"\n")
  at = int(rng.integers(len(lines)))
  if rng.random() < 0.3:
    kind, pieces = _of_sequence(lines, rng)
    return f"line {kind}", b"\n".join(pieces)
  try:
    kind, lines[at] = of_json(json.loads(lines[at]), rng)
  except ValueError:
    kind, lines[at] = of_bytes(lines[at], rng)
  return f"line: {kind}", b"\n".join(lines)


def of_header(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
  """Damages the JSON of a safetensors file, whose length is then right."""
  size = 8 + int.from_bytes(data[:8], "little")
  kind, header = of_json(json.loads(data[8:size]), rng)
  return f"header: {kind}", len(header).to_bytes(8, "little") + header + data[size:]


def of_entries(entries: list[tuple[bytes, bytes]], rng: np.random.Generator):
  """Damages (key, value) pairs."""
  return _of_members(entries, rng, of_bytes, damaged_name=of_bytes)


def _of_members(members, rng, damaged, damaged_name=None):
  at = int(rng.integers(len(members)))
  name, content = members[at]
  choice = rng.random()
  if choice < 0.6:
    kind, content = damaged(content, rng)
    members[at] = (name, content)
    return kind, members
  if choice < 0.7:
    if damaged_name is not None:
      name = damaged_name(name, rng)[1]
    else:
      name = _one(rng, (name[:-1] or "x", name + "x", "../" + name, "/" + name, name.upper()))
    members[at] = (name, content)
    return "renamed", members
  if choice < 0.85:
    other = int(rng.integers(len(members)))
    members[at] = (name, members[other][1])
    return "content of another", members
  return _of_sequence(members, rng)


def _of_sequence(items: list, rng) -> tuple[str, list]:
  at, to = (int(i) for i in rng.integers(len(items), size=2))
  match int(rng.integers(3)):
    case 0:
      return "removed", [*items[:at], *items[at + 1 :]]
    case 1:
      return "twice", [*items[:at], items[at], *items[at:]]
    case _:
      items = list(items)
      items[at], items[to] = items[to], items[at]
      return "swapped", items


# Of bytes.


def _place(data, rng) -> int:
  """Anywhere, or near an end, where headers are."""
  size, near = max(1, len(data)), min(96, max(1, len(data)))
  return int(
    _one(rng, (rng.integers(size), rng.integers(size), rng.integers(near), size - 1 - rng.integers(near)))
  )  # fmt: skip


def _bits(data, rng):
  for _ in range(int(rng.integers(1, 4)) if data else 0):
    data[_place(data, rng)] ^= 1 << int(rng.integers(8))
  return bytes(data)


def _bytes(data, rng):
  for _ in range(int(rng.integers(1, 8)) if data else 0):
    data[_place(data, rng)] = int(rng.integers(256))
  return bytes(data)


def _cut(data, rng):
  return bytes(data[: _place(data, rng)])


def _behind(data, rng):
  return bytes(data) + rng.bytes(int(rng.integers(1, 600)))


def _inserted(data, rng):
  at = _place(data, rng)
  return bytes(data[:at]) + rng.bytes(int(rng.integers(1, 24))) + bytes(data[at:])


def _removed(data, rng):
  at = _place(data, rng)
  return bytes(data[:at]) + bytes(data[at + int(rng.integers(1, 48)) :])


def _again(data, rng):
  """A piece repeated."""
  at = _place(data, rng)
  size = int(rng.integers(1, 1 + min(300, max(1, len(data)))))
  return bytes(data[: at + size]) + bytes(data[at:])


def _zeros(data, rng):
  at, size = _place(data, rng), int(rng.integers(1, 64))
  data[at : at + size] = bytes(len(data[at : at + size]))
  return bytes(data)


def _pieces(data, rng):
  """Two pieces change places."""
  size = int(rng.integers(1, 32))
  a, b = sorted((_place(data, rng), _place(data, rng)))
  if a + size <= b and b + size <= len(data):
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
  return bytes(data)


def _number(data, rng):
  """A length, an offset or a count: some bytes become an odd number, or a little more or less."""
  size = _one(rng, (1, 2, 4, 8))
  at = _place(data, rng)
  old = int.from_bytes(data[at : at + size], "little")
  near = (old + 1, old - 1, old * 2, old + 4, old - 4, old + 32, len(data), len(data) - at)
  new = int(_one(rng, (*_EDGES, *near))) % 2 ** (8 * size)
  data[at : at + size] = new.to_bytes(size, "little")[: len(data[at : at + size])]
  return bytes(data)


_OF_BYTES = {
  "bits": _bits,
  "bytes": _bytes,
  "number": _number,
  "zeros": _zeros,
  "pieces": _pieces,
  "cut": _cut,
  "behind": _behind,
  "inserted": _inserted,
  "cut out": _removed,
  "repeated": _again,
}


# Of JSON.


def _places(value, found=None):
  """(container, key) of everything inside of a value."""
  found = [] if found is None else found
  items = value.items() if isinstance(value, dict) else enumerate(value)
  for key, inner in items:
    found.append((value, key))
    if isinstance(inner, (dict, list)):
      _places(inner, found)
  return found


def _changed(value, rng):
  places = _places(value) if isinstance(value, (dict, list)) else []
  if not places or rng.random() < 0.01:
    return "whole", copy.deepcopy(ODD[_one(rng, ODD)])
  holder, key = places[int(rng.integers(len(places)))]
  other, other_key = places[int(rng.integers(len(places)))]
  choice = rng.random()
  if choice < 0.7:
    kind = _one(rng, ODD)
    holder[key] = copy.deepcopy(ODD[kind])
    return kind, value
  if choice < 0.77:
    del holder[key]
    return "removed", value
  if choice < 0.82:
    holder[key] = copy.deepcopy(other[other_key])
    return "another's", value
  if choice < 0.87:
    mine, theirs = copy.deepcopy(holder[key]), copy.deepcopy(other[other_key])
    holder[key] = theirs
    if (other is not holder or other_key != key) and _still(value, other, other_key):
      other[other_key] = mine
    return "swapped", value
  if choice < 0.92:
    holder[key] = {"x": holder[key]} if rng.random() < 0.5 else [holder[key]]
    return "wrapped", value
  if choice < 0.97 and isinstance(holder, dict):
    name = _one(rng, (f"{key}x", str(key)[:-1], str(key).upper(), "\ud800", "", "9" * 5_000))
    holder[name] = holder.pop(key)
    return "renamed", value
  if isinstance(holder[key], (int, float)):
    holder[key] = holder[key] + _one(rng, (-1, 1))
    return "near", value
  if isinstance(holder[key], list) and holder[key]:
    holder[key].append(copy.deepcopy(holder[key][0]))
    return "twice", value
  return "same", value


def _still(value, holder, key) -> bool:
  """Whether a place is still in a value."""
  return any(h is holder and k == key for h, k in _places(value))


def _one(rng, choices):
  choices = tuple(choices)
  return choices[int(rng.integers(len(choices)))]
