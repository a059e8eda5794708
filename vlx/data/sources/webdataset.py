"""WebDataset: tars in which the files of a sample share a name up to the first dot.

`000017.jpg`, `000017.txt`, `000017.json`: what img2dataset writes. A tar is read through once, and
where its samples lie is kept in vlx's cache; a record is then read from there.
"""

import hashlib
import io
import logging
import pathlib
import re
import tarfile

import numpy as np

from vlx.core import files
from vlx.core.errors import UserError
from vlx.core.files import cache_dir
from vlx.data.records import captions, parse_object, readable_texts
from vlx.data.sources.annotations import held_out

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
TEXTS = ("txt", "json")  # the first that is there gives the caption
# Offset and size in bytes of the image, the .txt and the .json of a sample (size -1: none).
COLUMNS = 6
MAX_TARS, MAX_DIGITS = 10**6, 15
BLOCK = tarfile.BLOCKSIZE
# Over names of 2^62 bytes, and headers of headers of headers.
TRIPPED = (OverflowError, MemoryError, RecursionError)


class WebDatasetSource:
  """The samples of many tars.

  `PATH` is a folder of tars, with a subfolder per split or none, or a pattern with a range in
  braces, `PATH/{00000..01243}.tar`. Where no subfolders tell, every tenth sample, by its name's
  hash, is "val".
  """

  def __init__(self, path: str, split: str):
    self._tars, own = _find_tars(path, split)
    if not own and split not in ("train", "val"):
      raise UserError(
        f"webdataset:{path} has no subfolder {split!r}; without one there are 'train' and 'val'"
      )
    indices = [_index(tar) for tar in self._tars]
    spans = np.concatenate([index["spans"] for index in indices])
    tars = np.repeat(np.arange(len(indices), dtype=np.int32), [len(i["spans"]) for i in indices])
    if not own:
      chosen = np.concatenate([i["held_out"] for i in indices]) == (split == "val")
      spans, tars = spans[chosen], tars[chosen]
    self._spans, self._tar_of = spans, tars

  def __len__(self):
    return len(self._spans)

  def __getitem__(self, index):
    return {**self._described(index), "image": self._read(index, 0)}

  def name(self, index):
    return f"{self._tars[self._tar_of[index]]}, at byte {self._spans[index, 0]}"

  def texts(self, fields):
    return readable_texts(self._described, len(self), fields)

  def _read(self, index: int, column: int) -> bytes:
    offset, size = self._spans[index, column : column + 2].tolist()
    with open(self._tars[self._tar_of[index]], "rb") as f:
      f.seek(offset)
      return f.read(size)

  def _described(self, index: int) -> dict:
    """The fields of the .json, its `caption` replaced by the .txt where there is one."""
    row = {}
    if self._spans[index, 5] >= 0:
      row = parse_object(self._read(index, 4))
    if self._spans[index, 3] >= 0:
      row["caption"] = self._read(index, 2).decode("utf-8", errors="surrogateescape").strip()
    return {**row, "caption": captions(row.get("caption"))}


def _find_tars(path: str, split: str) -> tuple[list[pathlib.Path], bool]:
  """(the tars in order, whether they are this split's own)."""
  braces = re.search(r"\{(\d+)\.\.(\d+)\}", path)
  # Of longer numbers there is neither a file nor, to Python, a range.
  if braces and max(map(len, braces.groups())) > MAX_DIGITS:
    raise UserError(f"webdataset:{path} has numbers of too many digits; {MAX_DIGITS} are the most")
  root = pathlib.Path(path).expanduser()
  if root.is_dir():
    own = (root / split).is_dir()
    tars = sorted((root / split if own else root).glob("*.tar"))
  else:
    own = False
    if not braces:
      raise UserError(
        f"webdataset:{path} is neither a folder nor a pattern like {{00000..00099}}.tar"
      )
    first, last = braces.groups()
    numbers = range(int(first), int(last) + 1)
    if not 0 < len(numbers) <= MAX_TARS:
      raise UserError(f"webdataset:{path} names {len(numbers)} tars; from 1 to {MAX_TARS} may be")
    tars = [
      pathlib.Path(f"{path[: braces.start()]}{n:0{len(first)}d}{path[braces.end() :]}").expanduser()
      for n in numbers
    ]
  if missing := [tar for tar in tars if not tar.is_file()]:
    raise UserError(f"{len(missing)} of {len(tars)} tars are missing, e.g. {missing[0]}")
  if not tars:
    raise UserError(f"no tars in {root / split if own else root}")
  return tars, own


def _index(tar: pathlib.Path) -> dict[str, np.ndarray]:
  """`spans` i64 `[N, 6]` and `held_out` bool `[N]` of a tar's samples, from the cache or the
  tar.
  """
  stat = tar.stat()
  key = hashlib.sha1(f"{tar.absolute()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()
  kept = cache_dir() / "webdataset" / f"{key}.npz"
  if kept.is_file():
    with np.load(kept) as arrays:
      return dict(arrays)
  index = _read_index(tar)
  out = io.BytesIO()
  np.savez(out, **index)
  files.write(kept, out.getvalue())
  return index


def _read_index(tar: pathlib.Path) -> dict[str, np.ndarray]:
  samples: dict[str, dict[str, tuple[int, int]]] = {}
  size, end, damaged = tar.stat().st_size, 0, 0
  try:
    # A damaged header costs its file, not all that is behind it.
    with tarfile.open(tar, "r:", ignore_zeros=True) as members:
      for member in members:
        if member.size < 0 or members.offset <= member.offset:  # it would be read again and again
          raise tarfile.ReadError(f"{member.name} says that it has {member.size} bytes")
        damaged += member.offset - end
        sparse = member.issparse()  # its bytes do not lie one after another
        end = member.offset_data + -(-member.size // BLOCK) * BLOCK
        end = members.offset if sparse else end
        if member.offset_data + member.size > size and not sparse:
          raise tarfile.ReadError(f"it ends within {member.name}")
        folder, _, base = member.name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if member.isfile() and not sparse and dot and stem:
          kind = "image" if extension.lower() in IMAGES else extension.lower()
          samples.setdefault(f"{folder}/{stem}", {})[kind] = (member.offset_data, member.size)
        members.members = []  # it would keep all it has seen
  except (tarfile.TarError, OSError, ValueError, *TRIPPED) as e:
    logging.warning("%s is damaged behind its sample %d: %s", tar, len(samples), e)
  if damaged:
    logging.warning("%s: %d bytes between its files are damaged and left out", tar, damaged)
  whole = {k: s for k, s in samples.items() if "image" in s and any(t in s for t in TEXTS)}
  if len(whole) < len(samples):
    logging.warning("%s: %d samples have no image or no text", tar, len(samples) - len(whole))
  kinds = ("image", *TEXTS)
  spans = [[n for kind in kinds for n in s.get(kind, (0, -1))] for s in whole.values()]
  return {
    "spans": np.array(spans, np.int64).reshape(-1, COLUMNS),
    "held_out": np.array([held_out(key) for key in whole], bool),
  }
