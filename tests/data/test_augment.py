"""Augmentations: identities, and what each leaves alone."""

import numpy as np
import pytest

from vlx.data.datasets.scenes import sprites
from vlx.data.transforms import augment, preprocess


def apply(ops, example, seed=0):
  return preprocess.parse(ops).finish(example, np.random.default_rng(seed))


def rgba(size=20):
  image = np.zeros((size, size, 4), np.uint8)
  image[5:15, 4:12] = (200, 100, 50, 255)
  return image


def test_affine_without_change_is_the_image():
  image = rgba()
  same = apply("random_affine(20, 1.0, 1.0, 0.0, 0.0, 0.0)", {"image": image})["image"]
  np.testing.assert_array_equal(same, image)


@pytest.mark.parametrize(
  "ops,area",
  [
    ("random_affine(20, 0.5, 0.5, 0.0, 0.0, 0.0)", 0.25),
    ("random_affine(40, 1.0, 1.0, 0.0, 0.0, 0.0)", 4.0),
    ("random_affine(20, 1.0, 1.0, 45.0, 0.2, 0.0)", 1.0),  # turning and stretching keep the area
  ],
)
def test_affine_scales_areas(ops, area):
  opaque = apply(ops, {"image": rgba()}, seed=1)["image"][..., 3].sum() / 255
  np.testing.assert_allclose(opaque, 80 * area, rtol=0.12)


def test_no_color_bleeds_from_transparent_pixels():
  image = rgba()
  image[image[..., 3] == 0, :3] = (0, 0, 255)
  moved = apply("random_affine(13, 0.9, 0.9, 30.0, 0.0, 0.0)", {"image": image})["image"]
  seen = moved[moved[..., 3] > 30]
  assert (np.abs(seen[:, :3].astype(int) - (200, 100, 50)) < 12).all()


def test_outline_surrounds_and_leaves_the_inside():
  image = rgba()
  drawn = apply("outline(1.0, 1)", {"image": image})["image"]
  np.testing.assert_array_equal(drawn[5:15, 4:12, :3], image[5:15, 4:12, :3])
  assert (drawn[4:16, 3:13, 3] == 255).all() and drawn[..., 3].sum() == 255 * 12 * 10


def test_dilate_is_the_greatest_of_the_neighbourhood():
  plane = np.random.default_rng(0).integers(0, 255, (6, 7), np.uint8)
  expected = [
    [plane[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].max() for j in range(7)] for i in range(6)
  ]
  np.testing.assert_array_equal(augment._dilate(plane), expected)


def test_color_jitter_of_nothing_is_nothing_and_gray_stays_gray_under_hue():
  image = np.random.default_rng(0).integers(0, 255, (6, 6, 3), np.uint8)
  same = apply("color_jitter(1.0, 0.0, 0.0, 0.0, 0.0)", {"image": image})["image"]
  assert np.abs(same.astype(int) - image).max() <= 1
  gray = np.repeat(image[..., :1], 3, axis=-1)
  turned = apply("color_jitter(1.0, 0.5, 0.5, 0.0, 0.0)", {"image": gray})["image"].astype(int)
  assert np.abs(turned - gray).max() <= 3  # the YIQ matrix has three decimals


@pytest.mark.parametrize("op", ["ink", "color_jitter", "grayscale", "posterize", "random_erase"])
def test_each_changes_with_probability_one_and_never_with_zero(op):
  image = np.random.default_rng(0).integers(0, 255, (12, 12, 3), np.uint8)
  before = image.copy()
  np.testing.assert_array_equal(apply(f"{op}(0.0)", {"image": image})["image"], before)
  changed = apply(f"{op}(1.0)", {"image": image})["image"]
  assert changed.shape == image.shape and changed.dtype == np.uint8
  assert (changed != before).any()
  np.testing.assert_array_equal(image, before)


def test_keywords_join_or_replace_the_caption():
  example = {"caption": "salt", "keywords": ("salt", "shaker", "condiment")}
  assert apply("add_keywords(0.0, 0.0)", example) == example
  joined = apply("add_keywords(1.0, 0.0, 5)", example)["caption"].split()
  assert joined[0] == "salt" and set(joined[1:]) <= {"shaker", "condiment"} and len(joined) > 1
  alone = apply("add_keywords(0.0, 1.0)", example)["caption"].split()
  assert alone and set(alone) <= {"shaker", "condiment"}


def test_shuffled_words_are_the_same_words():
  text = "woman dancing dark skin tone"
  shuffled = {apply("shuffle_words(1.0)", {"caption": text}, seed)["caption"] for seed in range(5)}
  assert len(shuffled) > 1
  assert all(sorted(s.split()) == sorted(text.split()) for s in shuffled)


def test_an_object_is_cut_out_in_the_middle_of_its_window():
  """A sprite of one color in an image of row numbers: the window's rows, its middle, its class."""
  image = np.tile(np.arange(40, dtype=np.uint8)[:, None, None], (1, 40, 3))
  image[8:12, 20:26] = 200
  objects = (
    {"name": "wolf", "box": (0.5, 0.2, 0.65, 0.3), "color": ""},
    {"name": "cat", "box": (0.0, 0.9, 0.1, 1.0), "color": "red"},
  )
  example = {"image": image, "objects": objects}
  first = preprocess.parse("cut_object(8)").finish(example, None)
  classes = (*sprites.ALL_NOUNS, "as it is", *sprites.COLORS)
  assert [classes[i] for i in first["label"]] == ["wolf", "as it is"]
  np.testing.assert_array_equal(first["image"], image[6:14, 19:27])
  noun = preprocess.parse("cut_object(8, color=False)").finish(example, None)["label"]
  assert noun.shape == () and classes[noun] == "wolf"
  # Beyond the lower edge its last row goes on; a shift moves the window, not what is shown.
  seen = [apply("cut_object(8, 0.0)", example, seed) for seed in range(20)]
  corners = [e["image"] for e in seen if [classes[i] for i in e["label"]] == ["cat", "red"]]
  assert 0 < len(corners) < 20
  np.testing.assert_array_equal(corners[0][:, -1, 0], [34, 35, 36, 37, 38, 39, 39, 39])
  moved = [apply("cut_object(8, 0.12)", example, seed)["image"] for seed in range(40)]
  assert {int((m == 200).all(-1).sum()) for m in moved if (m == 200).any()} == {24}


def test_a_hidden_image_is_black():
  assert not apply("hide", {"image": np.full((4, 4, 3), 9, np.uint8)})["image"].any()
