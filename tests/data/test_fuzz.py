"""Ten thousand damaged records: each is an example or a bad record, and nothing else happens."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from tests.fuzz.mutations import of_bytes
from vlx.data.records import BadRecord
from vlx.data.tokenizers import trained as tokenizers
from vlx.data.transforms import preprocess
from vlx.data.transforms.images import MAX_PIXELS

RECORDS = 10_000


def encoded(rng):
  """Small images in the formats and modes that people have."""
  rgb = rng.integers(0, 255, (24, 30, 3), np.uint8)
  image = Image.fromarray(rgb)
  alpha = Image.fromarray(rng.integers(0, 255, (24, 30, 4), np.uint8))
  deep = Image.fromarray(rng.integers(0, 65535, (24, 30)).astype(np.uint16))
  saved = [
    (image, "png", {}),
    (image, "jpeg", {}),
    (image, "webp", {}),
    (image, "bmp", {}),
    (image, "tiff", {"compression": "tiff_lzw"}),
    (alpha, "png", {}),
    (deep, "png", {}),
    (image.convert("CMYK"), "jpeg", {}),
    (image.convert("P"), "png", {}),
    (image.convert("LA"), "png", {}),
    (image.convert("P"), "gif", {"save_all": True, "append_images": [image.convert("P")]}),
    (image.convert("1"), "png", {}),
    (image, "jpeg", {"progressive": True}),
    (image, "ico", {}),
  ]
  for picture, kind, options in saved:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    yield out.getvalue()


def caption(rng):
  kind = rng.integers(5)
  if kind == 0:
    return ""
  if kind == 1:
    return rng.bytes(rng.integers(1, 60)).decode("utf-8", errors="surrogateescape")
  if kind == 2:
    return "".join(chr(c) for c in rng.integers(1, 0xD7FF, rng.integers(1, 60)))
  if kind == 3:
    return " \t\n\u200b" * rng.integers(1, 30)
  return "a &lt;b&gt; &amp;amp; word" * rng.integers(1, 20)


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_record_is_an_example_or_a_bad_record():
  rng = np.random.default_rng(0)
  tokenizer = tokenizers.train_bpe(["an image of a word"], 600)
  ops = preprocess.parse(
    'decode|random_resized_crop(16)|normalize|tokenize("caption", 12)|keep("image", "text", "text_mask")',
    tokenizer,
  )
  pictures = list(encoded(rng))
  good = 0
  for i in range(RECORDS):
    record = {"image": of_bytes(pictures[i % len(pictures)], rng)[1], "caption": caption(rng)}
    try:
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = ops.finish(ops.prepare(record), rng)
    except BadRecord:
      continue
    good += 1
    assert example["image"].shape == (16, 16, 3) and np.isfinite(example["image"]).all()
    assert example["text"].shape == (12,) and example["text_mask"].any()
  assert RECORDS // 10 < good < RECORDS * 9 // 10


def test_an_image_that_claims_to_be_huge_is_not_unpacked():
  out = io.BytesIO()
  Image.new("1", (10_000, 10_000)).save(out, "png")
  assert 10_000**2 > MAX_PIXELS and len(out.getvalue()) < 20_000
  with pytest.raises(BadRecord, match="10000x10000 pixels"):
    preprocess.parse("decode").finish({"image": out.getvalue()}, None)


def test_modes_of_images_are_what_they_show():
  def decoded(picture, kind="png", mode="RGB", **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return preprocess.parse(f'decode("{mode}")').finish({"image": out.getvalue()}, None)["image"][
      0, 0
    ]

  solid = lambda mode, color: Image.new(mode, (8, 8), color)
  np.testing.assert_array_equal(decoded(solid("L", 100)), [100] * 3)
  # a fifth of black on white
  np.testing.assert_array_equal(decoded(solid("LA", (0, 51))), [204] * 3)
  np.testing.assert_array_equal(decoded(solid("RGBA", (255, 0, 0, 0))), [255] * 3)
  np.testing.assert_array_equal(decoded(solid("RGBA", (9, 8, 7, 6)), mode="RGBA"), [9, 8, 7, 6])
  np.testing.assert_array_equal(decoded(solid("L", 7), mode="RGBA"), [7, 7, 7, 255])
  np.testing.assert_array_equal(
    decoded(Image.fromarray(np.full((8, 8), 40_000, np.uint16))), [156] * 3
  )
  np.testing.assert_allclose(decoded(solid("CMYK", (0, 255, 255, 0)), "jpeg"), [255, 0, 0], atol=3)
  first, second = solid("P", 0), solid("P", 0)
  first.putpalette([10, 20, 30]), second.putpalette([200, 200, 200])
  np.testing.assert_array_equal(
    decoded(first, "gif", save_all=True, append_images=[second]), [10, 20, 30]
  )


def test_a_text_of_100_kilobytes_is_its_beginning():
  tokenizer = tokenizers.train_bpe(["a b"], 600)
  ids, mask = tokenizer.encode("a b " * 25_000, 12)
  np.testing.assert_array_equal(ids, tokenizer.encode("a b " * 50, 12)[0])
  assert mask.all()
