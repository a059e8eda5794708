"""COCO, Flickr, WebDataset trees in their own form; mixes; metadata that is damaged."""

import io
import json
import pathlib
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from vlx.core.errors import UserError
from vlx.data.batches import Batches, Examples
from vlx.data.sources import epoch_order, open_source
from vlx.data.sources.mix import MixSource
from vlx.data.transforms import preprocess


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("VLX_CACHE", str(tmp_path_factory.mktemp("cache")))


def jpeg(value=0):
  out = io.BytesIO()
  Image.new("RGB", (9, 9), (value, value, value)).save(out, "jpeg")
  return out.getvalue()


def write_coco(root, folder, year="2017", split="val"):
  (root / folder).mkdir(parents=True, exist_ok=True)
  (root / "annotations").mkdir()
  images = [{"id": 7 + i, "file_name": f"{7 + i:012d}.jpg"} for i in range(3)]
  for i, image in enumerate(images):
    (root / folder / image["file_name"]).write_bytes(jpeg(i))
  captions = [
    {"image_id": 7, "id": 1, "caption": "a cat"},
    {"image_id": 8, "id": 2, "caption": "a dog"},
    {"image_id": 7, "id": 3, "caption": "the cat"},
  ]
  path = root / "annotations" / f"captions_{split}{year}.json"
  path.write_text(json.dumps({"images": images, "annotations": captions}))
  return path


@pytest.mark.parametrize("folder", ["val2017", "images", "."])
def test_coco_gives_each_image_with_all_its_captions(tmp_path, folder):
  write_coco(tmp_path, folder)
  source = open_source(f"coco:{tmp_path}", "val")
  records = [source[i] for i in range(len(source))]  # the third image has no caption
  assert [r["caption"] for r in records] == [("a cat", "the cat"), ("a dog",)]
  assert [r["image_id"] for r in records] == [7, 8]
  assert records[1]["image"] == jpeg(1)
  assert list(source.texts(("caption",))) == ["a cat", "the cat", "a dog"]


def test_a_coco_file_that_is_none(tmp_path):
  path = write_coco(tmp_path, "images")
  for content in ("{", "[]", '{"images": []}', '{"images": [], "annotations": [3]}'):
    path.write_text(content)
    with pytest.raises(UserError, match="is not a COCO captions file"):
      open_source(f"coco:{tmp_path}", "val")


def test_flickr8k_takes_the_lists_of_its_splits(tmp_path):
  (tmp_path / "Flicker8k_Dataset").mkdir()
  names = ["a.jpg", "b.jpg", "c.jpg"]
  for i, name in enumerate(names):
    (tmp_path / "Flicker8k_Dataset" / name).write_bytes(jpeg(i))
  (tmp_path / "Flickr8k.token.txt").write_text(
    "".join(f"{name}#{k}\tcaption {k} of {name}\n" for name in names for k in range(5))
  )
  (tmp_path / "Flickr_8k.trainImages.txt").write_text("a.jpg\nc.jpg\n")
  (tmp_path / "Flickr_8k.devImages.txt").write_text("b.jpg\n")
  train, val = (open_source(f"flickr:{tmp_path}", split) for split in ("train", "val"))
  assert [train[i]["file_name"] for i in range(len(train))] == ["a.jpg", "c.jpg"]
  assert val[0]["image"] == jpeg(1) and len(val[0]["caption"]) == 5
  (tmp_path / "Flickr8k.token.txt").write_text("a.jpg#0 no tab\n")
  with pytest.raises(UserError, match="line 1: no tab"):
    open_source(f"flickr:{tmp_path}", "train")


def write_karpathy(root, name, folders, splits):
  """A file of Karpathy's splits and its images, one for each of `splits`, in `folders` by turns."""
  images = []
  for i, split in enumerate(splits):
    folder = folders[i % len(folders)]
    (root / folder).mkdir(parents=True, exist_ok=True)
    filename = f"{i}.jpg"
    (root / folder / filename).write_bytes(jpeg(i))
    images.append(
      {
        "filename": filename,
        "imgid": i,
        "split": split,
        "sentids": [2 * i, 2 * i + 1],
        "sentences": [
          {
            "raw": f"Caption {k} of image {i}. ",
            "tokens": ["caption"],
            "imgid": i,
            "sentid": 2 * i + k,
          }
          for k in range(2)
        ],
      }
    )
    if "coco" in name:
      images[-1] |= {"filepath": pathlib.PurePath(folder).name, "cocoid": 100 + i}
  (root / name).write_text(json.dumps({"images": images, "dataset": "x"}))
  return images


@pytest.mark.parametrize(
  "folders", [("train2014", "val2014"), ("images/train2014", "images/val2014")]
)
def test_karpathys_splits_of_coco(tmp_path, folders):
  write_karpathy(
    tmp_path, "dataset_coco.json", folders, ["train", "val", "test", "restval", "val", "train"]
  )
  found = {}
  for split in ("train", "val", "test"):
    source = open_source(f"coco:{tmp_path}", split)
    records = [source[i] for i in range(len(source))]
    found[split] = [r["image_id"] - 100 for r in records]
    for r in records:
      i = r["image_id"] - 100
      assert r["image"] == jpeg(i)
      assert r["caption"] == (f"Caption 0 of image {i}.", f"Caption 1 of image {i}.")
  assert found == {"train": [0, 3, 5], "val": [1, 4], "test": [2]}
  with pytest.raises(UserError, match="'train', 'val' and 'test', no 'restval'"):
    open_source(f"coco:{tmp_path}", "restval")


def test_karpathys_images_may_lie_together(tmp_path):
  write_karpathy(tmp_path, "dataset_coco.json", ["images"], ["train", "val"])
  text = (
    (tmp_path / "dataset_coco.json")
    .read_text()
    .replace('"filepath": "images"', '"filepath": "val2014"')
  )
  (tmp_path / "dataset_coco.json").write_text(text)
  assert open_source(f"coco:{tmp_path}", "val")[0]["image"] == jpeg(1)


@pytest.mark.parametrize(
  "name,folder",
  [("dataset_flickr8k.json", "Flicker8k_Dataset"), ("dataset_flickr30k.json", "flickr30k-images")],
)
def test_karpathys_splits_of_flickr(tmp_path, name, folder):
  write_karpathy(tmp_path, name, [folder], ["train", "test", "val", "train"])
  sizes = {}
  for split in ("train", "val", "test"):
    source = open_source(f"flickr:{tmp_path}", split)
    sizes[split] = len(source)
    assert source[0]["caption"][1].startswith("Caption 1 of image") and "image_id" not in source[0]
  assert sizes == {"train": 2, "val": 1, "test": 1}


def test_a_file_of_splits_that_is_none(tmp_path):
  images = write_karpathy(tmp_path, "dataset_coco.json", ["val2014"], ["train"])
  image = images[0]
  bad = [
    "{",
    "[]",
    "{}",
    '{"images": 3}',
    '{"images": [3]}',
    *(
      json.dumps({"images": [{k: v for k, v in image.items() if k != key}]})
      for key in ("split", "filename", "sentences")
    ),
    json.dumps({"images": [{**image, "sentences": [{"tokens": ["a"]}]}]}),
    json.dumps({"images": [{**image, "sentences": [{"raw": 3}]}]}),
  ]
  for content in bad:
    (tmp_path / "dataset_coco.json").write_text(content)
    with pytest.raises(UserError, match="dataset_coco.json is not a file of Karpathy's splits"):
      open_source(f"coco:{tmp_path}", "train")
  (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
  (tmp_path / "val2014" / "0.jpg").unlink()
  with pytest.raises(UserError, match="0.jpg is in none of"):
    open_source(f"coco:{tmp_path}", "train")
  with pytest.raises(UserError, match="no records in its split 'test'"):
    open_source(f"coco:{tmp_path}", "test")


def write_tar(path, samples):
  with tarfile.open(path, "w") as tar:
    for name, files in samples.items():
      for extension, content in files.items():
        member = tarfile.TarInfo(f"{name}.{extension}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


def sample(i, **more):
  return {"jpg": jpeg(i), "txt": f"caption {i}".encode(), **more}


def test_webdataset_reads_samples_where_they_lie(tmp_path):
  (tmp_path / "train").mkdir()
  write_tar(tmp_path / "train" / "00000.tar", {f"{i:04d}": sample(i) for i in range(3)})
  write_tar(
    tmp_path / "train" / "00001.tar",
    {
      "sub/0003": {"json": b'{"caption": "of the json", "url": "x"}', "jpg": jpeg(3)},
      "0004": {"jpg": jpeg(4)},  # no text
      "a.name/0005": sample(5, json=b'{"url": "y"}'),
    },
  )
  source = open_source(f"webdataset:{tmp_path}", "train")
  assert [source[i]["caption"] for i in range(len(source))] == [
    "caption 0",
    "caption 1",
    "caption 2",
    "of the json",
    "caption 5",
  ]
  assert source[3]["image"] == jpeg(3) and source[4]["url"] == "y"
  # From the kept index, and pickled for a worker process.
  for again in (open_source(f"webdataset:{tmp_path}", "train"), pickle.loads(pickle.dumps(source))):
    assert again[3] == source[3]


def test_webdataset_by_pattern_holds_out_a_tenth_and_sees_a_changed_tar(tmp_path):
  for shard in range(2):
    write_tar(tmp_path / f"{shard:05d}.tar", {f"{shard}{i:04d}": sample(i) for i in range(100)})
  spec = f"webdataset:{tmp_path}/{{00000..00001}}.tar"
  train, val = (open_source(spec, split) for split in ("train", "val"))
  assert len(train) + len(val) == 200 and 8 <= len(val) <= 34
  write_tar(tmp_path / "00001.tar", {f"9{i:05d}": sample(i) for i in range(50)})
  assert len(open_source(spec, "train")) + len(open_source(spec, "val")) == 150


def test_a_tar_that_is_cut_off_gives_what_is_whole(tmp_path, caplog):
  path = tmp_path / "0.tar"
  write_tar(path, {f"{i:04d}": sample(i) for i in range(40)})
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 100])
  source = open_source(f"webdataset:{tmp_path}", "train")
  assert 10 < len(source) < 40
  for i in range(len(source) - 1):
    assert source[i]["image"][:2] == b"\xff\xd8"


def write_folder(root, count, word):
  root.mkdir()
  for i in range(count):
    (root / f"{i}.jpg").write_bytes(jpeg(i))
  (root / "metadata.jsonl").write_text(
    "".join(
      json.dumps({"file_name": f"{i}.jpg", "caption": f"{word} {i}"}) + "\n" for i in range(count)
    )
  )


def test_a_mix_draws_by_weight_and_each_part_in_its_own_epochs(tmp_path):
  write_folder(tmp_path / "a", 40, "a")
  write_folder(tmp_path / "b", 10, "b")
  mix = open_source(f"mix:3*folder:{tmp_path}/a;1*folder:{tmp_path}/b", "train")
  first, second = map(len, mix.parts)
  assert isinstance(mix, MixSource) and len(mix) == first + second
  assert mix[0]["caption"].startswith("a") and mix[first]["caption"].startswith("b")
  order = epoch_order(mix, seed=0)
  drawn = np.array([order[i] for i in range(8 * first)])
  of_first = drawn < first
  assert of_first.mean() == 0.75 and of_first[:40].mean() == pytest.approx(0.75, abs=0.03)
  for epoch in drawn[of_first].reshape(-1, first):
    np.testing.assert_array_equal(np.sort(epoch), np.arange(first))
  assert {r for r in mix.texts(("caption",))} == {mix[i]["caption"] for i in range(len(mix))}


def test_many_captions_are_chosen_from_at_random(tmp_path):
  (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.jpg", "caption": ["x", "y", "z"]}\n')
  (tmp_path / "a.jpg").write_bytes(jpeg())
  ops = preprocess.parse('decode|choose("caption")|keep("image", "caption")')
  for split in ("train", "val"):
    try:
      data = Batches(Examples(open_source(f"folder:{tmp_path}", split), ops), 30, 0)
    except UserError:
      continue  # the one record is in the other split
    assert set(data[0]["caption"]) == {"x", "y", "z"}


def test_damaged_lines_of_metadata_are_bad_records(tmp_path, caplog):
  write_folder(tmp_path / "a", 40, "a")
  lines = (tmp_path / "a" / "metadata.jsonl").read_bytes().splitlines()
  lines[5:10] = [
    b'{"file_name": "x',
    b'{"file_name": "\xff.jpg", "caption": "x"}',
    b"[]",
    b"",
    b'{"file_name": "1.jpg", "caption": ""}',
  ]
  (tmp_path / "a" / "metadata.jsonl").write_bytes(b"\n".join(lines))
  source = open_source(f"folder:{tmp_path}/a", "train")
  ops = preprocess.parse('decode|keep("image", "caption")')
  data = Batches(Examples(source, ops, max_bad_records=4), 8, 0)
  captions = {c for step in range(len(source) // 8 + 1) for c in data[step]["caption"]}
  assert len(captions) > 25 and caplog.text.count("bad record") == 4
  assert len(list(source.texts(("caption",)))) == len(source) - 4


def test_a_record_without_a_field_that_others_have_is_told(tmp_path):
  rows = [
    {"file_name": f"{i}.png", "caption": "a thing", **({"label": "a"} if i else {})}
    for i in range(2)
  ]
  for row in rows:
    Image.new("RGB", (4, 4)).save(tmp_path / row["file_name"])
  (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
  with pytest.raises(UserError, match="record 0 of the data has no 'label', only"):
    list(open_source(f"folder:{tmp_path}", "train").texts(("label",)))
