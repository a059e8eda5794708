"""Batches are a function of the step; bad records and sources."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from vlx.core.errors import UserError
from vlx.data.batches import Batches, Examples, iterate, one_pass
from vlx.data.sources import epoch_order, open_source
from vlx.data.transforms import preprocess


def png(value):
  out = io.BytesIO()
  Image.new("RGB", (9, 9), (value, value, value)).save(out, "png")
  return out.getvalue()


class Memory:
  """Images whose color is their index; those in `broken` cannot be decoded."""

  def __init__(self, count, broken=()):
    self._records = [{"image": png(i) if i not in broken else b"no"} for i in range(count)]

  def __len__(self):
    return len(self._records)

  def __getitem__(self, index):
    return self._records[index]

  def name(self, index):
    return f"memory/{index}"


OPS = 'decode|cache|random_crop(4)|keep("image")'


def batches(count=20, batch_size=8, seed=0, ops=OPS, **kwargs):
  examples = Examples(Memory(count, kwargs.pop("broken", ())), preprocess.parse(ops), **kwargs)
  return Batches(examples, batch_size, seed)


def test_a_batch_is_the_same_from_any_start():
  expected = {s: batches()[s] for s in (7, 3)}
  data = batches()
  walked = dict(enumerate(iterate(data, 0, 9)))
  resumed = dict(enumerate(iterate(batches(), 3, 9), start=3))
  for step, batch in expected.items():
    for name, value in batch.items():
      np.testing.assert_array_equal(walked[step][name], value)
      np.testing.assert_array_equal(resumed[step][name], value)
  assert list(resumed) == [3, 4, 5, 6, 7, 8]


def test_each_epoch_sees_each_record_once_in_another_order():
  data = batches(count=20, batch_size=5)
  ids = np.concatenate([data[s]["example_id"] for s in range(12)]).reshape(3, 20)
  for epoch in ids:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(20))
  assert len({tuple(epoch) for epoch in ids}) == 3


def test_another_seed_is_another_order_and_other_crops():
  one, other = batches(seed=0)[0], batches(seed=1)[0]
  assert one["example_id"].tolist() != other["example_id"].tolist()


def test_randomness_differs_from_epoch_to_epoch():
  array = np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)
  out = io.BytesIO()
  Image.fromarray(array).save(out, "png")

  class One(Memory):
    def __getitem__(self, index):
      return {"image": out.getvalue()}

  data = Batches(Examples(One(1), preprocess.parse(OPS)), 1, 0)
  crops = {data[s]["image"].tobytes() for s in range(20)}
  assert len(crops) > 10


def test_order_without_shuffle_is_the_sources():
  assert [epoch_order(Memory(3), 0, shuffle=False)[i] for i in range(5)] == [0, 1, 2, 0, 1]


def test_bad_records_are_replaced_by_the_next_good_one(caplog):
  good, bad = batches(max_bad_records=2), batches(broken=(4, 5), max_bad_records=2)
  for step in range(3):
    expected = np.where(np.isin(good[step]["example_id"], (4, 5)), 6, good[step]["example_id"])
    np.testing.assert_array_equal(bad[step]["example_id"], expected)
  assert "memory/4" in caplog.text and "memory/5" in caplog.text


def test_too_many_bad_records_stop_the_run_with_their_names():
  data = batches(broken=(1, 2, 3), max_bad_records=2)
  with pytest.raises(UserError, match="3 bad records, more than the 2 allowed here.*memory/"):
    for step in range(3):
      data[step]


def test_one_pass_sees_everything_once_and_fills_up_with_the_last():
  examples = Examples(Memory(11), preprocess.parse('decode|keep("image")'))
  value = lambda batch: batch["image"][:, 0, 0, 0]
  passes = [value(b) for b in one_pass(examples, 4)]
  np.testing.assert_array_equal(np.concatenate(passes), [*range(11), 10])
  # Two processes with the outer and the inner rows of each batch.
  outer, inner = (
    [value(b) for b in one_pass(examples, 4, np.array(rows))] for rows in ([0, 3], [1, 2])
  )
  np.testing.assert_array_equal(outer, [p[[0, 3]] for p in passes])
  np.testing.assert_array_equal(inner, [p[[1, 2]] for p in passes])


def test_rows_of_a_batch_are_the_batchs_rows():
  examples = Examples(Memory(20), preprocess.parse(OPS))
  whole = Batches(examples, 8, 0)[5]
  part = Batches(examples, 8, 0, rows=np.array([1, 6]))[5]
  for name, value in part.items():
    np.testing.assert_array_equal(value, whole[name][[1, 6]])


def test_worker_processes_make_the_same_batches():
  here = batches()
  for step, batch in enumerate(iterate(batches(), 4, 8, workers=2), start=4):
    for name, value in here[step].items():
      np.testing.assert_array_equal(batch[name], value)
  assert step == 7


def write_folder(root, names, kind="jsonl"):
  root.mkdir(parents=True, exist_ok=True)
  rows = [{"file_name": n, "caption": f"image {n}"} for n in names]
  for i, row in enumerate(rows):
    (root / row["file_name"]).write_bytes(png(i))
  if kind == "jsonl":
    (root / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
  else:
    with (root / "metadata.csv").open("w", newline="") as f:
      writer = csv.DictWriter(f, ["file_name", "caption"])
      writer.writeheader()
      writer.writerows(rows)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_folder_without_subfolders_holds_out_a_tenth_by_name(tmp_path, kind):
  names = [f"{i}.png" for i in range(200)]
  write_folder(tmp_path, names, kind)
  train, val = (open_source(f"folder:{tmp_path}", s) for s in ("train", "val"))
  captions = [{s[i]["caption"] for i in range(len(s))} for s in (train, val)]
  assert (
    captions[0] | captions[1] == {f"image {n}" for n in names} and not captions[0] & captions[1]
  )
  assert 8 <= len(val) <= 34  # 200 fair draws of a tenth: five standard deviations
  assert set(train.texts(("caption",))) == captions[0]
  # A new image moves none of the others.
  write_folder(tmp_path, names + ["new.png"], kind)
  grown = open_source(f"folder:{tmp_path}", "val")
  assert {grown[i]["caption"] for i in range(len(grown))} >= captions[1]


def test_folder_with_subfolders_takes_them_as_splits(tmp_path):
  write_folder(tmp_path / "train", ["a.png"])
  write_folder(tmp_path / "test", ["b.png", "c.png"])
  assert len(open_source(f"folder:{tmp_path}", "test")) == 2
  assert open_source(f"folder:{tmp_path}", "train")[0]["image"] == png(0)


def test_sources_that_cannot_be(tmp_path):
  (tmp_path / "empty").mkdir()
  (tmp_path / "none").mkdir()
  (tmp_path / "none" / "metadata.jsonl").write_text("")
  (tmp_path / "bad").mkdir()
  (tmp_path / "bad" / "metadata.jsonl").write_text('{"file_name": "a.png", "caption": 3}\n')
  for spec, split, message in [
    ("foldr:x", "train", "did you mean 'folder'"),
    ("folder:/does/not/exist", "train", "no folder"),
    (f"folder:{tmp_path}/empty", "train", "neither metadata.jsonl nor metadata.csv"),
    (f"folder:{tmp_path}/none", "train", "has no records"),
    (f"folder:{tmp_path}/bad", "train", "record 1: no caption"),
    (f"coco:{tmp_path}", "train", "no annotations/captions_train"),
    (f"flickr:{tmp_path}", "train", "neither Flickr8k.token.txt nor"),
    (f"webdataset:{tmp_path}", "train", "no tars in"),
    (f"webdataset:{tmp_path}/x.tar", "train", "neither a folder nor a pattern"),
    (f"webdataset:{tmp_path}/{{00..03}}.tar", "train", "4 of 4 tars are missing"),
    ("mix:tfds:emoji", "train", "WEIGHT"),
    ("mix:0*tfds:emoji", "train", "weights above 0"),
    (f"folder:{tmp_path}/none", "test", "no subfolder 'test'"),
    ("tfds:emoji", "traim", "did you mean 'train'"),
    ("tfds:no_such_data_set", "train", "no_such_data_set"),
  ]:
    with pytest.raises(UserError, match=message):
      open_source(spec, split)
