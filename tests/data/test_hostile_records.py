"""People's files as they are: what spreadsheets write, records of other types, captions of which
nothing is left. Each is read right, or is a bad record; none is another error, none is trained in
silence as something else.
"""

import codecs
import errno
import io
import json
import os
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from vlx.core.errors import UserError
from vlx.data import batches, sources
from vlx.data.records import BadRecord
from vlx.data.tokenizers import trained as tokenizers
from vlx.data.transforms import preprocess


def images(folder, names="ab"):
  folder.mkdir(parents=True, exist_ok=True)
  for i, name in enumerate(names):
    Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(folder / f"{name}.png")


def captions(source):
  """Of each record, None for a bad one."""
  found = []
  for i in range(len(source)):
    try:
      found.append(source[i]["caption"])
    except (BadRecord, OSError):
      found.append(None)
  return found


TABLE = 'file_name,caption\r\na.png,"a café, at night"\r\nb.png,a dog\r\n'
BOTH = ["a café, at night", "a dog"]


@pytest.mark.parametrize(
  "data, expected",
  (
    (TABLE.encode(), BOTH),
    (TABLE.encode("utf-8-sig"), BOTH),
    (TABLE.encode("utf-16"), BOTH),
    (b"file_name;caption\na.png;a caf\xc3\xa9, at night\nb.png;a dog\n", BOTH),
    (b"file_name\tcaption\na.png\ta caf\xc3\xa9, at night\nb.png\ta dog\n", BOTH),
  ),
)
def test_tables_of_spreadsheets(tmp_path, data, expected):
  images(tmp_path / "train")
  (tmp_path / "train" / "metadata.csv").write_bytes(data)
  assert captions(sources.open_source(f"folder:{tmp_path}", "train")) == expected


def test_a_table_in_another_code_is_no_garbage(tmp_path):
  """The machine's 8-bit code: the record is bad, not trained as "caf?"."""
  images(tmp_path / "train")
  rows = "file_name,caption\r\nb.png,a dog\r\na.png,a café\r\n".encode("cp1252")
  (tmp_path / "train" / "metadata.csv").write_bytes(rows)
  source = sources.open_source(f"folder:{tmp_path}", "train")
  assert captions(source) == ["a dog", None]
  assert list(source.texts(("caption",))) == ["a dog"]


@pytest.mark.parametrize("name", ("metadata.csv", "metadata.jsonl"))
def test_a_line_for_each_caption_is_one_record_of_the_image(tmp_path, name):
  images(tmp_path / "train")
  lines = [("a", "one"), ("b", "two"), ("a", "three"), ("a", "one")]
  if name.endswith("csv"):
    text = "file_name,caption\n" + "".join(f"{f}.png,{c}\n" for f, c in lines)
  else:
    text = "".join(json.dumps({"file_name": f"{f}.png", "caption": c}) + "\n" for f, c in lines)
  (tmp_path / "train" / name).write_text(text)
  source = sources.open_source(f"folder:{tmp_path}", "train")
  assert captions(source) == [("one", "three"), "two"]


GOOD = b'{"file_name": "a.png", "caption": "a dog"}\n'


@pytest.mark.parametrize(
  "line",
  (
    b'{"file_name": "b.png", "caption": 7}',
    b'{"file_name": "b.png", "caption": NaN}',
    b'{"file_name": "b.png", "caption": true}',
    b'{"file_name": "b.png", "caption": ["x", 7]}',
    b'{"file_name": "b.png", "caption": {"en": "x"}}',
    b'{"file_name": "b.png", "caption": [" ", ""]}',
    b'{"file_name": "b.png", "caption": "\\ud83d"}',
    b'{"file_name": "b\\u0000.png", "caption": "x"}',
    b'{"file_name": "\\ud83d.png", "caption": "x"}',
    b'{"file_name": 3, "caption": "x"}',
    b'{"file_name": "../train/a.png", "caption": "x"}',
    b'{"file_name": "/etc/passwd", "caption": "x"}',
    b'{"file_name": "fifo", "caption": "x"}',
    b'{"file_name": ".", "caption": "x"}',
    b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"file_name": "b.png", "caption": "' + b"w " * 60_000 + b'"}',
    b"[1]",
    b"null",
    b"\xff\xfe",
  ),
)
def test_records_of_other_types_are_bad_ones(tmp_path, line):
  images(tmp_path / "train")
  os.mkfifo(tmp_path / "train" / "fifo")
  (tmp_path / "train" / "metadata.jsonl").write_bytes(GOOD + line + b"\n")
  source = sources.open_source(f"folder:{tmp_path}", "train")
  assert captions(source) == ["a dog", None]
  assert source.name(1)


def test_a_byte_order_mark_before_json(tmp_path):
  images(tmp_path / "train")
  (tmp_path / "train" / "metadata.jsonl").write_bytes(codecs.BOM_UTF8 + GOOD)
  assert captions(sources.open_source(f"folder:{tmp_path}", "train")) == ["a dog"]


def test_characters_that_only_python_takes_for_ends_of_lines(tmp_path):
  images(tmp_path / "images")
  (tmp_path / "Flickr8k.token.txt").write_bytes(
    "a.png#0\ta dog\u2028and a cat\nb.png#0\ta\u0085b\n".encode()
  )
  for split, names in (("train", {"a.png"}), ("dev", {"b.png"})):
    (tmp_path / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names))
  source = sources.open_source(f"flickr:{tmp_path}", "train")
  assert captions(source) == [("a dog\u2028and a cat",)]


@pytest.mark.parametrize("member", (b'[{"caption": "x"}]', b'"x"', b"null", b"3", b"[" * 100_000))
def test_json_of_other_types_in_a_tar(tmp_path, member):
  out = io.BytesIO()
  Image.new("RGB", (8, 8)).save(out, "PNG")
  with tarfile.open(tmp_path / "0.tar", "w") as tar:
    for name, data in (("1.png", out.getvalue()), ("1.json", member)):
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  (tmp_path / "train").mkdir()
  (tmp_path / "0.tar").rename(tmp_path / "train" / "0.tar")
  assert captions(sources.open_source(f"webdataset:{tmp_path}", "train")) == [None]


@pytest.mark.parametrize(
  "tokenizer, text",
  (
    *(("bpe", text) for text in ("&nbsp;", "\x01\x02", "\u00a0 &nbsp;")),
    *(("words", text) for text in ("!!!", "\U0001f389", "...")),
  ),
)
def test_a_caption_of_which_nothing_is_left_is_bad(tokenizer, text):
  made = {
    "bpe": lambda: tokenizers.train_bpe(["a cat"], 600),
    "words": lambda: tokenizers.train_word_level(["a cat"], 50, 1),
  }[tokenizer]()
  with pytest.raises(BadRecord):
    preprocess.parse('tokenize("caption", 8)', made).finish({"caption": text}, None)


class Flaky:
  """Records of captions, of which some reads fail."""

  def __init__(self, captions, failures=()):
    self.captions, self.failures = captions, list(failures)

  def __len__(self):
    return len(self.captions)

  def __getitem__(self, index):
    if self.failures:
      raise self.failures.pop()
    return {"caption": self.captions[index]}

  def name(self, index):
    return f"record {index}"


def test_batches_are_functions_of_the_step_whatever_was_bad_before():
  """Of five captions one is empty, of three a tokenizer of words knows none."""
  good = ["a cat", "a dog", "a fish", "a bird"]
  captions = [(*good, "" if i < 4 else "a cow") for i in range(6)] + [(*good, "!!!"), ("", " ")]
  words = tokenizers.train_word_level(["a cat dog fish bird cow"], 50, 1)
  ops = preprocess.parse('choose("caption")|tokenize("caption", 8)|keep("text")', words)
  make = lambda: batches.Batches(batches.Examples(Flaky(captions), ops, 100), 4, 0)
  whole, gone_on = make(), make()
  before = [whole[step] for step in range(40)]
  late = {int(i) for batch in before[20:] for i in batch["example_id"]}
  assert late == set(range(7))
  for step in range(20, 40):
    for name in ("example_id", "text"):
      np.testing.assert_array_equal(gone_on[step][name], before[step][name])


def test_a_disk_that_fails_for_a_moment_costs_no_record(monkeypatch):
  monkeypatch.setattr(batches, "RETRY_AFTER", (0.0, 0.0))
  words = tokenizers.train_word_level(["a cat"], 50, 1)
  ops = preprocess.parse('tokenize("caption", 4)|keep("text")', words)
  source = Flaky(["a cat", "a a"], [OSError(errno.ESTALE, "stale file handle")] * 2)
  assert batches.Examples(source, ops, 0)(0, None)[0] == 0
  for code in (errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP):  # to ask again is no use
    source.failures = [OSError(code, "gone")]
    assert batches.Examples(source, ops, 1)(0, None)[0] == 1
  source.failures = [OSError(errno.EIO, "input/output error")] * 3
  with pytest.raises(UserError, match="input/output error"):
    batches.Examples(source, ops, 0)(0, None)


@pytest.mark.parametrize("table", (None, '{"file_name": "a.png"}\n{"file_name": "b.png"}\n'))
def test_images_alone_are_records_for_what_reads_no_text(tmp_path, table):
  images(tmp_path / "train")
  if table:
    (tmp_path / "train" / "metadata.jsonl").write_text(table)
  source = sources.open_source(f"folder:{tmp_path}", "train")
  assert len(source) == 2 and source[0]["image"] and "caption" not in source[0]
  with pytest.raises(UserError, match="has no 'caption'"):
    list(source.texts(("caption",)))
  for ops in ('tokenize("caption", 8)', 'choose("caption")'):
    with pytest.raises(BadRecord, match="caption is empty"):
      preprocess.parse(ops, tokenizers.train_word_level(["a"], 50, 1)).finish(source[0], None)


def tar_of(path, count):
  out = io.BytesIO()
  Image.new("RGB", (8, 8)).save(out, "PNG")
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as tar:
    for i in range(count):
      for name, data in ((f"{i:03d}.png", out.getvalue()), (f"{i:03d}.txt", b"number %d" % i)):
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def test_a_tar_that_is_damaged_in_the_middle_loses_one_sample(tmp_path, caplog):
  path = tmp_path / "train" / "0.tar"
  tar_of(path, 20)
  with tarfile.open(path) as tar:
    where = tar.getmember("007.png").offset
  data = bytearray(path.read_bytes())
  data[where + 100 : where + 160] = b"\xff" * 60
  path.write_bytes(data)
  found = captions(sources.open_source(f"webdataset:{tmp_path}", "train"))
  assert found == [f"number {i}" for i in range(20) if i != 7]
  assert "are damaged and left out" in caplog.text


def test_a_tar_that_is_cut_off_keeps_what_is_whole(tmp_path, caplog):
  path = tmp_path / "train" / "0.tar"
  tar_of(path, 20)
  with tarfile.open(path) as tar:
    where = tar.getmember("012.png").offset_data
  path.write_bytes(path.read_bytes()[: where + 20])
  found = captions(sources.open_source(f"webdataset:{tmp_path}", "train"))
  assert found == [f"number {i}" for i in range(12)]
  assert "is damaged behind its sample" in caplog.text


def tar_member(kind, data, size=None):
  """A header and its bytes, of which it may say any number."""
  info = tarfile.TarInfo("x")
  info.type, info.size = kind, len(data)
  header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
  if size is not None:
    header[124:136] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
  return bytes(header) + data + bytes(-len(data) % 512)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
  "odd",
  {
    "long names before long names": tar_member(b"L", b"y\0") * 2000,
    "headers before headers": tar_member(b"x", b"13 comment=x\n") * 2000,
    "a name of exabytes": tar_member(b"L", b"y\0", 2**62),
    "a name of more": tar_member(b"L", b"y\0", 2**80),
    "headers of exabytes": tar_member(b"x", b"y\0", 2**62),
    "fewer bytes than none": tar_member(b"x", b"11 size=-5\n"),
    "back to the first": tar_member(b"x", b"14 size=-2048\n"),
  }.items(),
  ids=lambda item: item[0],
)
def test_headers_that_lead_tarfile_astray(tmp_path, caplog, odd):
  path = tmp_path / "train" / "0.tar"
  tar_of(path, 2)
  with tarfile.open(path) as tar:
    at = tar.getmember("001.png").offset
  data = path.read_bytes()
  path.write_bytes(data[:at] + odd[1] + data[at:])
  assert captions(sources.open_source(f"webdataset:{tmp_path}", "train")) == ["number 0"]
  assert "is damaged behind its sample" in caplog.text


def test_a_sparse_file_in_a_tar_is_left_out(tmp_path, caplog):
  """Its holes are not in the tar: what follows them would be its bytes."""
  path = tmp_path / "train" / "0.tar"
  tar_of(path, 3)
  data = bytearray(path.read_bytes())
  with tarfile.open(path) as tar:
    at = tar.getmember("001.txt").offset
  header = data[at : at + 512]
  header[156:157], header[257:265] = b"S", b"ustar  \0"
  places = (90_000, len(b"number 1"))  # its one piece begins there, and is so long
  header[386:410] = b"".join(b"%011o\0" % n for n in places)
  header[483:495] = b"%011o\0" % sum(places)
  header[148:156] = b" " * 8
  header[148:156] = b"%06o\0 " % sum(header)
  data[at : at + 512] = header
  path.write_bytes(data)
  with tarfile.open(path) as tar:
    assert tar.getmember("001.txt").issparse()
  assert captions(sources.open_source(f"webdataset:{tmp_path}", "train")) == [
    "number 0",
    "number 2",
  ]
  assert "damaged" not in caplog.text


def test_a_whole_tar_is_not_called_damaged(tmp_path, caplog):
  tar_of(tmp_path / "train" / "0.tar", 5)
  assert len(sources.open_source(f"webdataset:{tmp_path}", "train")) == 5
  assert not caplog.text


def test_tars_that_are_not_there_are_told(tmp_path):
  (tmp_path / "train").mkdir()
  (tmp_path / "train" / "0.tar").symlink_to(tmp_path / "gone.tar")
  with pytest.raises(UserError, match="1 of 1 tars are missing"):
    sources.open_source(f"webdataset:{tmp_path}", "train")
  with pytest.raises(UserError, match="may be"):
    sources.open_source(f"webdataset:{tmp_path}/{{0..999999999999}}.tar", "train")


def test_a_first_image_that_is_missing_refuses_no_set(tmp_path):
  images(tmp_path / "images", "bcd")
  names = [f"{n}.png" for n in "abcd"]
  (tmp_path / "annotations").mkdir()
  content = {
    "images": [{"id": i, "file_name": n} for i, n in enumerate(names)],
    "annotations": [{"image_id": i, "caption": n} for i, n in enumerate(names)],
  }
  (tmp_path / "annotations" / "captions_train2017.json").write_text(json.dumps(content))
  found = captions(sources.open_source(f"coco:{tmp_path}", "train"))
  assert found == [None, ("b.png",), ("c.png",), ("d.png",)]


def test_captions_that_are_nested_to_where_python_ends(tmp_path):
  """Some that it reads it does not write; where it ends depends on who calls."""
  images(tmp_path / "images")
  (tmp_path / "annotations").mkdir()
  content = {
    "images": [{"id": i, "file_name": f"{n}.png"} for i, n in enumerate("ab")],
    "annotations": [{"image_id": 0, "caption": "x"}, {"image_id": 1, "caption": "DEEP"}],
  }
  kinds = set()
  for depth in range(sys.getrecursionlimit() - 200, sys.getrecursionlimit()):
    text = json.dumps(content).replace('"DEEP"', "[" * depth + "]" * depth)
    (tmp_path / "annotations" / "captions_train2017.json").write_text(text)
    try:
      assert captions(sources.open_source(f"coco:{tmp_path}", "train")) == [("x",), None]
      kinds.add("bad record")
    except UserError:
      kinds.add("not read")
  assert kinds == {"bad record", "not read"}


@pytest.mark.parametrize("caption", ("caption", "text"))
@pytest.mark.parametrize("validation", ("val", "validation"))
def test_hugging_faces_imagefolder(tmp_path, caption, validation):
  """metadata.csv above `train/`, names from there, captions called `text`."""
  rows = ["train/a.png,a cat", "train/b.png,a dog", f"{validation}/a.png,a cow"]
  for split in ("train", validation):
    images(tmp_path / split)
  (tmp_path / "metadata.csv").write_text("\n".join([f"file_name,{caption}", *rows]))
  train, val = (sources.open_source(f"folder:{tmp_path}", split) for split in ("train", "val"))
  assert captions(train) == ["a cat", "a dog"] and captions(val) == ["a cow"]
  assert train[1]["image"] == (tmp_path / "train" / "b.png").read_bytes()
  with pytest.raises(UserError, match=f"no subfolder 'test', only train, {validation}"):
    sources.open_source(f"folder:{tmp_path}", "test")


def test_what_is_trained_is_not_held_out_where_one_split_is_there(tmp_path):
  images(tmp_path / "train", "abcdefgh")
  with pytest.raises(UserError, match="no subfolder 'val', only train"):
    sources.open_source(f"folder:{tmp_path}", "val")
