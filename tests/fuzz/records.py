"""Readers of people's data: each record is an example or a bad one, and the file is read or refused."""

import io
import json
import os
import pathlib
import tarfile

import numpy as np
from PIL import Image

from tests.fuzz import mutations as m
from tests.fuzz.harness import Content, Reader
from vlx.core import files
from vlx.data import sources
from vlx.data.records import BadRecord
from vlx.data.tokenizers import trained
from vlx.data.transforms import preprocess

KINDS = {  # of images, as people have them
  "a.png": ("RGB", {}),
  "b.jpg": ("RGB", {}),
  "c.webp": ("RGB", {}),
  "d.bmp": ("P", {}),
  "e.tif": ("RGB", {"compression": "tiff_lzw"}),
  "f.png": ("RGBA", {}),
  "g.png": ("I;16", {}),
  "h.jpg": ("CMYK", {}),
  "i.png": ("1", {}),
  "j.gif": ("P", {"save_all": True}),
  "k.jpg": ("L", {"progressive": True}),
  "l.png": ("LA", {}),
  "m.jp2": ("RGB", {}),
  "n.ppm": ("RGB", {}),
}
CAPTIONS = ("a dog", "a café, at night", "two words \u2028 apart")


def _image(name: str) -> bytes:
  mode, options = KINDS[name]
  rng = np.random.default_rng(len(name))
  if mode == "I;16":
    picture = Image.fromarray(rng.integers(0, 65535, (12, 15)).astype(np.uint16))
  else:
    picture = Image.fromarray(rng.integers(0, 255, (12, 15, 3), np.uint8)).convert(mode)
  if options.get("save_all"):
    options = {**options, "append_images": [picture]}
  out = io.BytesIO()
  kind = {"jpg": "jpeg", "tif": "tiff", "jp2": "jpeg2000"}.get(name[2:], name[2:])
  picture.save(out, kind, **options)
  return out.getvalue()


def _images(folder, count=3):
  folder.mkdir(parents=True, exist_ok=True)
  for name in list(KINDS)[:count]:
    (folder / name).write_bytes(_image(name))


def _write_images(folder):
  _images(folder, len(KINDS))


_OPS = None


def _decoded(folder) -> Content:
  """What training makes of each image."""
  global _OPS
  if _OPS is None:
    tokenizer = trained.train_bpe(["a dog"], 300)
    _OPS = preprocess.parse(
      'decode|random_resized_crop(8)|normalize|tokenize("caption", 6)'
      '|keep("image", "text", "text_mask")',
      tokenizer,
    )
  found = {}
  for name in KINDS:
    record = {"image": (folder / name).read_bytes(), "caption": "a dog"}
    try:
      example = _OPS.finish(_OPS.prepare(record), np.random.default_rng(0))
      assert example["image"].shape == (8, 8, 3) and np.isfinite(example["image"]).all()
      found[name] = example["image"].tobytes()
    except BadRecord as e:
      found[name] = f"bad: {_one_line(e)}"
  return Content(found)


def _one_line(error: Exception) -> str:
  assert len(str(error)) < 5000, "a bad record is told in a line"
  return type(error).__name__


def _read(spec: str, split: str = "train", fields=("caption",)):
  """All records of a source, and all texts."""

  def read(folder: pathlib.Path) -> Content:
    source = sources.open_source(spec.format(folder), split)
    records = []
    for index in range(len(source)):
      source.name(index)
      try:
        record = dict(source[index])
        records.append({k: repr(v) for k, v in sorted(record.items())})
      except (BadRecord, OSError) as e:  # the next one takes its place
        records.append(_one_line(e))
    return Content((records, list(source.texts(fields))))

  return read


def _jsonl(folder):
  _images(folder / "train")
  rows = [{"file_name": n, "caption": c, "id": 7} for n, c in zip(KINDS, CAPTIONS)]
  rows.append({"file_name": "a.png", "caption": ["one", "two"]})
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "train" / "metadata.jsonl").write_text(text)


def _csv(folder):
  _images(folder / "train")
  rows = [f'{name},"{c}",x' for name, c in zip(KINDS, CAPTIONS)]
  text = "file_name,caption,more\r\n" + "".join(row + "\r\n" for row in rows)
  (folder / "train" / "metadata.csv").write_bytes(text.encode())


def _coco(folder):
  _images(folder / "images")
  (folder / "annotations").mkdir()
  images = [{"id": i, "file_name": n, "height": 12} for i, n in enumerate(list(KINDS)[:3])]
  captions = [{"image_id": i % 3, "id": i, "caption": c} for i, c in enumerate(2 * CAPTIONS)]
  content = {"info": {}, "images": images, "annotations": captions}
  (folder / "annotations" / "captions_train2017.json").write_text(json.dumps(content))


def _karpathy(folder):
  _images(folder / "images" / "train2014")
  images = [
    {
      "filename": n, "filepath": "train2014", "split": s, "cocoid": i,
      "sentences": [{"raw": c, "tokens": c.split()} for c in CAPTIONS[: i + 1]],
    }
    for i, (n, s) in enumerate(zip(KINDS, ("train", "restval", "val")))
  ]  # fmt: skip
  (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))


def _flickr(folder):
  _images(folder / "images")
  lines = [f"{n}#{i}\t{c}\n" for n in list(KINDS)[:3] for i, c in enumerate(CAPTIONS)]
  (folder / "results_20130124.token").write_text("".join(lines))
  (folder / "Flickr_8k.trainImages.txt").write_text("a.png\nb.jpg\n")


def _conversations(folder):
  _images(folder)
  rows = [
    {
      "id": str(i), "image": name,
      "conversations": [{"from": "human", "value": f"<image>\n{c}"}, {"from": "gpt", "value": c}],
    }
    for i, (name, c) in enumerate(zip(KINDS, CAPTIONS))
  ]  # fmt: skip
  rows.append({"instruction": "say", "input": "x", "output": "y", "image": "a.png"})
  (folder / "train.json").write_text(json.dumps(rows))


def _read_conversations(folder) -> Content:
  """Down to what a language model is trained on."""
  ops = preprocess.parse("decode|conversation(64)", trained.train_bpe(["a dog"], 300))
  source = sources.open_source(f"conversations:{folder}", "train")
  found = []
  for index in range(len(source)):
    try:
      example = ops.finish(ops.prepare(source[index]), np.random.default_rng(0))
      found.append({k: repr(v) for k, v in sorted(example.items())})
    except (BadRecord, OSError) as e:
      found.append(_one_line(e))
  return Content(found)


def _lines(folder):
  (folder / "train.txt").write_text("".join(c + "\n" for c in CAPTIONS))


def _json_lines(folder):
  (folder / "train.jsonl").write_text("".join(json.dumps({"text": c}) + "\n" for c in CAPTIONS))


def _tar(folder):
  (folder / "train").mkdir()
  with tarfile.open(folder / "train" / "0.tar", "w") as archive:
    for i, (name, caption) in enumerate(zip(KINDS, CAPTIONS)):
      members = {name[2:]: _image(name), "txt": caption.encode()}
      members["json"] = json.dumps({"caption": caption, "id": i}).encode()
      for extension, data in members.items():
        entry = tarfile.TarInfo(f"s/{i:03}.{extension}")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))


def _read_tar(folder) -> Content:
  os.environ["VLX_CACHE"] = str(folder / "cache")
  return _read("webdataset:{}")(folder)


def _metrics(folder):
  rows = [{"step": i, "loss": 0.5 / (i + 1), "lr": 1e-3} for i in range(5)]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


TEXT = (m.of_lines, m.of_lines, m.of_bytes)
JSON = (m.of_json, m.of_json, m.of_bytes)

READERS = {
  "images": Reader(_write_images, _decoded, {"*.*": (m.of_bytes,)}),
  "metadata.jsonl": Reader(_jsonl, _read("folder:{}"), {"**/*.jsonl": TEXT}),
  "metadata.csv": Reader(_csv, _read("folder:{}"), {"**/*.csv": TEXT}),
  "coco": Reader(_coco, _read("coco:{}"), {"**/*.json": JSON}),
  "karpathy": Reader(_karpathy, _read("coco:{}"), {"*.json": JSON}),
  "flickr": Reader(_flickr, _read("flickr:{}"), {"*.t*": TEXT}),
  "conversations": Reader(
    _conversations, _read_conversations, {"train.json": JSON}
  ),
  "lines": Reader(_lines, _read("text:{}", fields=("text",)), {"train.txt": TEXT}),
  "lines of JSON": Reader(
    _json_lines, _read("text:{}", fields=("text",)), {"train.jsonl": TEXT}
  ),
  "webdataset": Reader(_tar, _read_tar, {"train/0.tar": (m.of_bytes, m.of_tar, m.of_tar_header)}),
  "metrics.jsonl": Reader(
    _metrics, lambda folder: Content(files.read_steps(folder / "metrics.jsonl")),
    {"metrics.jsonl": TEXT},
  ),
}  # fmt: skip
