"""Images in folders, and files that say what they show: vlx's own form, COCO, Flickr8k/30k.

COCO's and Flickr's may have the splits of Karpathy and Fei-Fei ("Deep Visual-Semantic Alignments
for Generating Image Descriptions", 2015), which captioning papers report on: `dataset_coco.json`,
`dataset_flickr8k.json` or `dataset_flickr30k.json` in the folder.
"""

import codecs
import collections
import csv
import hashlib
import io
import json
import mmap
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from vlx.core.errors import UserError
from vlx.data.records import BadRecord, captions, parse_object, read_file, readable_texts, strings

IMAGES = (
  *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
  *(".avif", ".jp2", ".ppm", ".pgm"),
)
METADATA = ("metadata.jsonl", "metadata.csv")
CHUNK = 2**24  # bytes of a file to look through at a time
FIRST_IMAGES = 100  # of which one must be there
HELD_OUT = 0.1  # the share of "val" where the data has no splits of its own


def held_out(name: str) -> bool:
  """Whether a record belongs to "val": by a hash of its name, so that adding some moves none."""
  return int(hashlib.sha1(name.encode()).hexdigest()[:8], 16) / 2**32 < HELD_OUT


class MappedFile:
  """A file's bytes, read from disk where they are asked for; pickled as its path."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    with open(path, "rb") as f:
      self._bytes = (
        mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
      )

  def __len__(self):
    return len(self._bytes)

  def __getitem__(self, where: slice) -> bytes:
    return self._bytes[where]

  def __reduce__(self):
    return MappedFile, (self._path,)


def _written(row: dict) -> bytes:
  """A row's text; of one that is nested deeper than Python writes, no object: a bad record."""
  try:
    return json.dumps(row).encode()
  except RecursionError:
    return b"null"


class ImageFolder:
  """Records whose images are files: `file_name`, under a root, and what else a JSON object says.

  The objects stay text until they are asked for, so a million of them take 16 bytes each besides.

  Args:
    root: of the file names.
    text: JSON objects, in bytes.
    spans: `[N, 2]`, where each begins and ends.
  """

  def __init__(self, root: pathlib.Path, text: bytes | MappedFile, spans: np.ndarray):
    self._root, self._text, self._spans = root, text, spans

  @classmethod
  def of(cls, root: pathlib.Path, rows: Iterable[dict]) -> "ImageFolder":
    """From objects that are in memory one at a time."""
    return cls.of_texts(root, map(_written, rows))

  @classmethod
  def of_texts(cls, root: pathlib.Path, rows: Iterable[bytes]) -> "ImageFolder":
    text, ends = io.BytesIO(), [0]
    for row in rows:
      text.write(row)
      ends.append(text.tell())
    return cls(root, text.getvalue(), np.stack([ends[:-1], ends[1:]], axis=1))

  def select(self, chosen: Sequence[bool]) -> "ImageFolder":
    """The records marked True."""
    return ImageFolder(self._root, self._text, self._spans[np.array(chosen, bool)])

  def where(self, chosen: Callable[[str], bool], bad: bool = True) -> "ImageFolder":
    """The records whose file's name is chosen; bad ones, too, where `bad` says so."""

    def keeps(index):
      try:
        return chosen(self.row(index)["file_name"])
      except BadRecord:
        return bad

    return self.select([keeps(i) for i in range(len(self))])

  def row(self, index: int) -> dict:
    """Parses one annotation of an image.

    Raises:
      BadRecord: where that is no JSON object in UTF-8 with `file_name` and `caption`.
    """
    start, stop = self._spans[index].tolist()
    row = parse_object(self._text[start:stop])
    if not isinstance(row.get("file_name"), str):
      raise BadRecord("no file_name")
    said = next((name for name in ("caption", "text") if name in row), None)
    return row if said is None else {**row, "caption": captions(row[said])}

  def __len__(self):
    return len(self._spans)

  def __getitem__(self, index):
    row = self.row(index)
    return {**row, "image": read_file(self._root, row["file_name"])}

  def name(self, index):
    try:
      return str(self._root / self.row(index)["file_name"])
    except BadRecord:
      return f"{self._root}, record {index + 1}"

  def texts(self, fields):
    return readable_texts(self.row, len(self), fields)

  def joined(self) -> "ImageFolder":
    """The records of one file as one, with all its captions: tables have a line for each caption."""
    # A number for each line: a million names would take more memory than all else.
    hashes = np.fromiter((self._hash(index) for index in range(len(self))), np.int64, len(self))
    _, firsts, group, sizes = np.unique(
      hashes, return_index=True, return_inverse=True, return_counts=True
    )
    if len(sizes) == len(self):
      return self
    lines, ends = np.argsort(group, kind="stable"), np.cumsum(sizes)
    return ImageFolder.of_texts(
      self._root,
      (
        text
        for g in np.argsort(firsts)
        for text in self._of_files(lines[ends[g] - sizes[g] : ends[g]].tolist())
      ),
    )

  def _hash(self, index: int) -> int:
    try:
      return hash(self.row(index)["file_name"])
    except BadRecord:  # which is joined with none
      return hash(("bad", index))

  def _of_files(self, indices: Sequence[int]) -> Iterator[bytes]:
    """Records of the lines of a file, or of several whose names have one hash."""
    if len(indices) == 1:
      yield bytes(self._text[slice(*self._spans[indices[0]].tolist())])
      return
    by_file = collections.defaultdict(list)
    for row in map(self.row, indices):
      by_file[row["file_name"]].append(row)
    for rows in by_file.values():
      captions = [text for row in rows if "caption" in row for text in strings(row["caption"])]
      joined = {"caption": tuple(dict.fromkeys(captions))} if captions else {}
      yield json.dumps({**rows[0], **joined}).encode()


def _existing_folder(path: str) -> pathlib.Path:
  root = pathlib.Path(path).expanduser()
  if not root.is_dir():
    raise UserError(f"no folder {root}")
  return root


def folder(path: str, split: str) -> ImageFolder:
  """Images beside a `metadata.jsonl` or `metadata.csv` with `file_name` and `caption`.

  Without such a file, subfolders are classes: `label` is a subfolder's name, and the caption the
  same in words. Images alone, without either, are records without a caption.

  A subfolder with the split's name is that split ("validation" is "val" too), and the file may stand
  above it, with names from there, as Hugging Face's `imagefolder` has it, where captions may be called
  `text`. Without subfolders every tenth file, by a hash of its name, is in "val" and the rest in
  "train".
  """
  root = _existing_folder(path)
  known = ("train", "val", "validation", "test")
  there = [name for name in dict.fromkeys((split, *known)) if (root / name).is_dir()]
  names = (split, "validation") if split == "val" else (split,)
  own = next((name for name in names if name in there), None)
  if own is None and there:
    raise UserError(f"{root} has no subfolder {split!r}, only {', '.join(there)}")
  if own is None:
    why = f"{root} has no subfolder {split!r}; without one"
    return _by_hash(_with_metadata(root), split, why)
  if any((root / own / name).is_file() for name in METADATA) or not any(
    (root / name).is_file() for name in METADATA
  ):
    return _with_metadata(root / own)
  source = _with_metadata(root)
  return source.where(lambda name: pathlib.PurePosixPath(name).parts[:1] == (own,))


def _by_hash(source: ImageFolder, split: str, why: str) -> ImageFolder:
  if split not in ("train", "val"):
    raise UserError(f"{why} there are 'train' and 'val'")

  return source.where(lambda name: held_out(name) == (split == "val"), bad=split == "train")


def _with_metadata(root: pathlib.Path) -> ImageFolder:
  if (file := root / METADATA[0]).is_file():
    text = MappedFile(file)
    breaks = [
      np.flatnonzero(np.frombuffer(text[first : first + CHUNK], np.uint8) == ord("\n")) + first + 1
      for first in range(0, len(text), CHUNK)
    ]
    edges = np.concatenate([[0], *breaks, [len(text)]]).astype(np.int64)
    spans = np.stack([edges[:-1], edges[1:]], axis=1)
    if text[: len(codecs.BOM_UTF8)] == codecs.BOM_UTF8:
      spans[0, 0] = len(codecs.BOM_UTF8)
    # Blank lines, and what is behind the last line's end.
    source = ImageFolder(root, text, spans[[bool(text[a:b].strip()) for a, b in spans.tolist()]])
  elif (file := root / METADATA[1]).is_file():
    source = ImageFolder.of(root, _table(file))
  elif rows := _classes(root) or _images(root):
    return ImageFolder.of(root, rows)
  else:
    raise UserError(
      f"{root} has neither metadata.jsonl nor metadata.csv (columns file_name and caption), nor images"
    )
  if len(source):
    try:
      source.row(0)
    except BadRecord as e:
      raise UserError(f"{file}, record 1: {e}") from e
  return source.joined()


def _table(file: pathlib.Path) -> Iterator[dict]:
  """The rows of a CSV as spreadsheets write it: with a byte order mark or without, in UTF-8 or -16,
  the cells parted by commas, semicolons or tabs. Other bytes are kept, and told when they are read.
  """
  data = file.read_bytes()
  utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
  text = data.decode(
    "utf-16" if utf16 else "utf-8-sig", errors="replace" if utf16 else "surrogateescape"
  )
  header = text.partition("\n")[0]
  delimiter = max(",;\t", key=header.count)
  csv.field_size_limit(2**31 - 1)  # a long cell is told as a record of its own
  reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
  try:
    yield from reader
  except csv.Error as e:
    raise UserError(f"{file}, line {reader.line_num}: {e}") from e


def _classes(root: pathlib.Path) -> list[dict]:
  """A row for each image in a subfolder, whose name is its label, and its caption in words."""
  return [
    {
      "file_name": f"{folder.name}/{file.name}",
      "label": folder.name,
      "caption": re.sub(r"[_-]+", " ", folder.name),
    }
    for folder in sorted(root.iterdir())
    if folder.is_dir()
    for file in sorted(folder.iterdir())
    if file.suffix.lower() in IMAGES
  ]


def _images(root: pathlib.Path) -> list[dict]:
  return [
    {"file_name": file.name} for file in sorted(root.iterdir()) if file.suffix.lower() in IMAGES
  ]


def coco(path: str, split: str) -> ImageFolder:
  """COCO captions (Chen et al., 2015): `annotations/captions_SPLIT2017.json` or another year's.

  The images lie in `SPLIT2017/`, in `images/`, or beside `annotations/`. A record has all of a
  image's captions (`choose("caption")` takes one) and its `image_id`.

  With `dataset_coco.json` the splits are Karpathy's, and the images lie in `train2014/` and
  `val2014/` of the folder or of its `images/`, or all together in one of these two.
  """
  root = _existing_folder(path)
  if (file := root / "dataset_coco.json").is_file():
    return _karpathy(root, file, split, ("images", "."))
  found = sorted((root / "annotations").glob(f"captions_{split}*.json"))
  if not found:
    raise UserError(f"{root} has no annotations/captions_{split}*.json")
  try:
    content = json.loads(found[-1].read_bytes())
    texts: dict[int, list[str]] = {}
    for annotation in content["annotations"]:
      texts.setdefault(annotation["image_id"], []).append(annotation["caption"])
    rows = [
      {"file_name": image["file_name"], "caption": texts[image["id"]], "image_id": image["id"]}
      for image in content["images"]
      if image["id"] in texts
    ]
  except (KeyError, TypeError, ValueError, RecursionError) as e:
    raise UserError(f"{found[-1]} is not a COCO captions file: {type(e).__name__}: {e}") from e
  year = found[-1].stem.removeprefix("captions_")
  return ImageFolder.of(_folder_of(root, (year, "images", "."), rows), rows)


def flickr(path: str, split: str) -> ImageFolder:
  """Flickr8k (Hodosh et al., 2013) and Flickr30k (Young et al., 2014), as they are given out.

  `Flickr8k.token.txt` or `results_20130124.token`: lines of "NAME.jpg#0", a tab, a caption. The
  splits are `Flickr_8k.{train,dev,test}Images.txt`; without these, a tenth by the names' hash is
  "val". A record has all of an image's captions. With `dataset_flickr8k.json` or
  `dataset_flickr30k.json` captions and splits are Karpathy's.
  """
  root = _existing_folder(path)
  folders = ("Flicker8k_Dataset", "Flickr8k_Dataset", "flickr30k-images", "images", ".")
  for name in ("dataset_flickr8k.json", "dataset_flickr30k.json"):
    if (root / name).is_file():
      return _karpathy(root, root / name, split, folders)
  found = [f for f in (root / "Flickr8k.token.txt", root / "results_20130124.token") if f.is_file()]
  if not found:
    raise UserError(f"{root} has neither Flickr8k.token.txt nor results_20130124.token")
  texts: dict[str, list[str]] = {}
  # Not splitlines(): some characters inside of a text count as ends of lines there.
  lines = found[0].read_bytes().decode("utf-8-sig", errors="surrogateescape").split("\n")
  for number, line in enumerate(lines, 1):
    name, tab, caption = line.partition("\t")
    if not line.strip():
      continue
    if not tab:
      raise UserError(f"{found[0]}, line {number}: no tab between the image's name and the caption")
    texts.setdefault(name.partition("#")[0], []).append(caption.strip())
  rows = [{"file_name": name, "caption": found} for name, found in texts.items()]
  source = ImageFolder.of(_folder_of(root, folders, rows), rows)
  listed = root / f"Flickr_8k.{'dev' if split == 'val' else split}Images.txt"
  if listed.is_file():
    names = set(listed.read_text("utf-8", errors="surrogateescape").split())
    return source.select([row["file_name"] in names for row in rows])
  return _by_hash(source, split, f"{root} has no {listed.name}; without such files")


def _karpathy(
  root: pathlib.Path, file: pathlib.Path, split: str, folders: Sequence[str]
) -> ImageFolder:
  """A split of Karpathy's: "train" with COCO's "restval", as papers train, "val", "test"."""
  if split not in ("train", "val", "test"):
    raise UserError(f"{file} has the splits 'train', 'val' and 'test', no {split!r}")
  own = ("train", "restval") if split == "train" else (split,)
  try:
    rows = []
    for image in json.loads(file.read_bytes())["images"]:
      raw = [sentence["raw"].strip() for sentence in image["sentences"]]
      if image["split"] in own and raw:
        name = pathlib.PurePosixPath(image.get("filepath", ""), image["filename"])
        more = {"image_id": image["cocoid"]} if "cocoid" in image else {}
        rows.append({"file_name": str(name), "caption": raw, **more})
  except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as e:
    raise UserError(f"{file} is not a file of Karpathy's splits: {type(e).__name__}: {e}") from e
  first = rows[:FIRST_IMAGES]
  if rows and not any(_has(root / f, row) for row in first for f in folders):
    rows = [{**row, "file_name": pathlib.PurePosixPath(row["file_name"]).name} for row in rows]
  return ImageFolder.of(_folder_of(root, folders, rows), rows)


def _folder_of(root: pathlib.Path, names: Sequence[str], rows: Sequence[dict]) -> pathlib.Path:
  """The first of the folders that holds one of the first images."""
  for row in rows[:FIRST_IMAGES]:
    for name in names:
      if _has(root / name, row):
        return root / name
  if not rows:
    return root
  raise UserError(f"{rows[0]['file_name']} is in none of {', '.join(str(root / n) for n in names)}")


def _has(folder: pathlib.Path, row: dict) -> bool:
  """Whether the file of a row, which may say anything, is in a folder."""
  try:
    return (folder / row["file_name"]).is_file()
  except (TypeError, ValueError, OSError):  # no text, or none that can be a name
    return False
