"""Preprocessing strings: what they mean, and what is said of those that mean nothing."""

import io

import numpy as np
import pytest
from PIL import Image

from vlx.core.errors import UserError
from vlx.data.records import BadRecord
from vlx.data.tokenizers import trained as tokenizers
from vlx.data.transforms import preprocess


def encoded(array, mode, kind="png"):
  out = io.BytesIO()
  Image.fromarray(array, mode).save(out, kind)
  return out.getvalue()


def run(ops, record, seed=0, tokenizer=None):
  parsed = preprocess.parse(ops, tokenizer)
  return parsed.finish(parsed.prepare(record), np.random.default_rng(seed))


def rgba():
  array = np.zeros((8, 8, 4), np.uint8)
  array[2:6, 2:6] = (200, 100, 0, 255)
  return array


def test_transparent_images_lie_on_white():
  image = run("decode", {"image": encoded(rgba(), "RGBA")})["image"]
  assert image.shape == (8, 8, 3)
  assert (image[0, 0] == 255).all() and (image[3, 3] == (200, 100, 0)).all()


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGB", "CMYK", "I;16", "LA"])
def test_every_mode_decodes_to_rgb(mode):
  image = Image.new(mode, (5, 4))
  out = io.BytesIO()
  image.save(out, "tiff")
  assert run("decode", {"image": out.getvalue()})["image"].shape == (4, 5, 3)


@pytest.mark.parametrize("data", [b"", b"not an image", encoded(rgba(), "RGBA")[:60]])
def test_a_broken_image_is_a_bad_record(data):
  with pytest.raises(BadRecord):
    run("decode", {"image": data})


def test_background_is_blended_by_alpha():
  array = rgba()
  array[0, 0] = (0, 0, 0, 51)  # a fifth black on the color below
  image = run('decode("RGBA")|background((10, 200, 100))', {"image": encoded(array, "RGBA")})[
    "image"
  ]
  np.testing.assert_array_equal(image[0, 0], [8, 160, 80])
  np.testing.assert_array_equal(image[7, 7], [10, 200, 100])


def test_normalize_is_to_minus_one_and_one():
  record = {"image": np.array([[[0, 127.5, 255]]])}
  np.testing.assert_allclose(run("normalize", record)["image"], [[[-1, 0, 1]]])


@pytest.mark.parametrize("crop", ("central_crop", "random_crop"))
def test_no_larger_square_is_cut_of_an_image(crop):
  array = np.zeros((6, 9, 3), np.uint8)
  assert run(f"{crop}(6)", {"image": array})["image"].shape == (6, 6, 3)
  with pytest.raises(BadRecord, match="9x6 pixels"):
    run(f"{crop}(7)", {"image": array})


def test_resize_small_and_central_crop_keep_the_middle():
  array = np.zeros((20, 40, 3), np.uint8)
  array[:, 15:25] = 255
  image = run("resize_small(10)|central_crop(10)", {"image": array})["image"]
  assert image.shape == (10, 10, 3)
  assert image[5, 5, 0] == 255 and image[5, 0, 0] == 0 and image[5, 9, 0] == 0


@pytest.mark.parametrize(
  "op,shape",
  [
    ("resize(6)", (6, 6)),
    ("resize(6, 9)", (6, 9)),
    ("random_crop(5)", (5, 5)),
    ("random_resized_crop(7)", (7, 7)),
    ("flip_lr", (8, 8)),
  ],
)
def test_shapes_and_that_equal_randomness_gives_equal_images(op, shape):
  array = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
  before = array.copy()
  one, other = (run(op, {"image": array}, seed=3)["image"] for _ in range(2))
  assert one.shape == (*shape, 3) and one.dtype == np.uint8
  np.testing.assert_array_equal(one, other)
  np.testing.assert_array_equal(array, before)


def test_crops_where_half_a_pixel_is_left_over():
  """A border of 3/2 pixels is 1, or 2 where halves go to even; one of 5/2 is 2 either way."""
  for length, down, even in ((7, 1, 2), (9, 2, 2), (8, 2, 2)):
    image = np.arange(length * length * 3).reshape(length, length, 3).astype(np.uint8)
    for half, start in (("down", down), ("even", even)):
      found = run(f"central_crop(4, half='{half}')", {"image": image})["image"]
      np.testing.assert_array_equal(found, image[start : start + 4, start : start + 4])


def test_alpha_is_dropped_not_blended():
  array = rgba()
  array[0, 0] = (9, 8, 7, 0)
  image = run("decode('any')|opaque", {"image": encoded(array, "RGBA")})["image"]
  np.testing.assert_array_equal(image, array[..., :3])
  assert run("decode('any')", {"image": encoded(array[..., :3], "RGB")})["image"].shape == (8, 8, 3)


def test_an_unknown_filter_is_told():
  with pytest.raises(UserError, match="no resampling 'bilinaer': did you mean 'bilinear'"):
    run("resize(3, method='bilinaer')", {"image": np.zeros((4, 4, 3), np.uint8)})


def test_flip_mirrors():
  array = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
  np.testing.assert_array_equal(run("flip_lr(1.0)", {"image": array})["image"], array[:, ::-1])


def test_what_stands_left_of_cache_is_done_once():
  parsed = preprocess.parse("decode|cache|flip_lr|normalize")
  assert parsed.cached and len(parsed.once) == 1 and len(parsed.each_time) == 2


def test_bars_and_commas_in_strings_are_text():
  out = run('template("a | {}, b")', {"caption": "cat"})
  assert out["caption"] == "a | cat, b"


def test_tokenize_keeps_start_and_end():
  tokenizer = tokenizers.train_bpe(["cat dog", "cat"], 600)
  out = run(
    'tokenize("caption", 4)|keep("text", "text_mask")', {"caption": "cat dog cat"}, 0, tokenizer
  )
  assert list(out) == ["text", "text_mask"]
  assert out["text"][0] == tokenizer.start_id and out["text"][3] == tokenizer.end_id
  assert out["text_mask"].all()


@pytest.mark.parametrize(
  "ops,message",
  [
    ("decod", "did you mean 'decode'"),
    ("decode|resize", "it takes resize"),
    ("decode|resize(3, 4, 5)", "too many positional"),
    ("decode|resize(3", "cannot read"),
    ("decode|resize(x)", "cannot read"),
    ("decode||resize(3)", "cannot read"),
  ],
)
def test_a_mistake_is_told(ops, message):
  with pytest.raises(UserError, match=message):
    preprocess.parse(ops)


def test_keep_of_a_field_that_is_not_there_names_what_is():
  with pytest.raises(UserError, match="keeps label, but the record has only image"):
    run('keep("label")', {"image": 0})
