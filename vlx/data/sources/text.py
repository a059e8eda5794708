"""Texts and conversations: sources without images, or with one where a conversation is about it."""

import json
import pathlib
import urllib.parse
from collections.abc import Sequence

from vlx.core.errors import UserError
from vlx.data.records import Record, check_text, parse_object, read_file, readable_texts
from vlx.data.sources.annotations import held_out


class Rows:
  """Records that are JSON texts in memory.

  Args:
    label: what to call them in messages.
    rows: each a JSON object.
    images: where the files lie that a row's `image` names.
  """

  def __init__(self, label: str, rows: Sequence[str], images: pathlib.Path | None = None):
    self._label, self._rows, self._images = label, rows, images

  def __len__(self):
    return len(self._rows)

  def row(self, index: int) -> Record:
    row = parse_object(self._rows[index])
    for value in row.values():
      if isinstance(value, str):
        check_text(value)
    return row

  def __getitem__(self, index):
    row = self.row(index)
    if self._images is not None and isinstance(row.get("image"), str):
      row["image"] = read_file(self._images, row["image"])
    return row

  def name(self, index):
    return f"{self._label}, record {index + 1}"

  def texts(self, fields):
    return readable_texts(self.row, len(self), fields)


def lines(path: str, split: str) -> Rows:
  """`text` of each line of a .txt file, or of each object of a .jsonl; of a folder, of its file
  SPLIT.txt or SPLIT.jsonl.

  Blank lines are no records. Of a single file every tenth line, by its hash, is "val" and the rest
  "train".
  """
  file, own = _file(path, split, (".txt", ".jsonl"))
  # Not splitlines(): some characters inside of a text count as ends of lines there.
  found = [
    line
    for line in file.read_bytes().decode("utf-8-sig", errors="surrogateescape").split("\n")
    if line.strip()
  ]
  if file.suffix == ".txt":
    found = [json.dumps({"text": line.strip("\r")}) for line in found]
  return Rows(str(file), found if own else _of_split(found, split))


def conversations(path: str, split: str) -> Rows:
  """LLaVA's JSON: a list of {"id", "image"?, "conversations": [{"from", "value"}, …]};
  `?images=FOLDER` has the images.

  Alpaca's {"instruction", "input", "output"} become conversations of two turns. Without a folder
  the images lie beside the file. Of a folder, its file SPLIT.json; of a single file every tenth, by
  its hash, is "val" and the rest "train".
  """
  file_path, _, query = path.partition("?")
  options = dict(urllib.parse.parse_qsl(query))
  if unknown := sorted(set(options) - {"images"}):
    raise UserError(f"conversations:{path}: no option {unknown[0]!r}, only images")
  file, own = _file(file_path, split, (".json",))
  try:
    content = json.loads(file.read_bytes())
  except (ValueError, RecursionError) as e:
    raise UserError(f"{file} is not JSON: {e}") from e
  if not isinstance(content, list):
    raise UserError(f"{file} holds no list of conversations")
  found = [json.dumps(_conversation(row)) for row in content]
  images = pathlib.Path(options["images"]).expanduser() if "images" in options else file.parent
  return Rows(str(file), found if own else _of_split(found, split), images)


def _conversation(row):
  """A record of Alpaca's as turns; any other, and a bad one, as it is."""
  if not isinstance(row, dict) or "conversations" in row:
    return row
  said = [row.get("instruction"), row.get("input", ""), row.get("output")]
  if not all(isinstance(text, str) for text in said):
    return row
  *asked, answer = said
  turns = [
    {"from": "human", "value": "\n".join(part for part in asked if part)},
    {"from": "gpt", "value": answer},
  ]
  return {**row, "conversations": turns}


def _file(path: str, split: str, suffixes: tuple[str, ...]) -> tuple[pathlib.Path, bool]:
  """(the file, whether it is this split's own)."""
  root = pathlib.Path(path).expanduser()
  if root.is_file():
    if split not in ("train", "val"):
      raise UserError(f"{root} is one file: its splits are 'train' and 'val', no {split!r}")
    return root, False
  found = [
    root / f"{split}{suffix}" for suffix in suffixes if (root / f"{split}{suffix}").is_file()
  ]
  if not found:
    raise UserError(f"no file {root}, and no {' or '.join(f'{split}{s}' for s in suffixes)} in it")
  return found[0], True


def _of_split(rows: list[str], split: str) -> list[str]:
  return [row for row in rows if held_out(row) == (split == "val")]
