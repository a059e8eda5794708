"""Images as people have them: more than 8 bits, turned by EXIF, extreme sizes; crops that keep
what they promise.
"""

import io

import numpy as np
import pytest
from PIL import Image

from vlx.data.records import BadRecord
from vlx.data.transforms import preprocess

QUARTER = np.full((8, 8), 16384)


def saved(image, kind="PNG", **options):
  out = io.BytesIO()
  (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
  return out.getvalue()


def run(ops, image, seed=0):
  return preprocess.parse(ops).finish({"image": image}, np.random.default_rng(seed))["image"]


@pytest.mark.parametrize(
  "data",
  (
    saved(QUARTER.astype(np.uint16)),
    b"P5 8 8 65535\n" + QUARTER.astype(">u2").tobytes(),
    saved(QUARTER.astype(np.uint16), "TIFF"),
  ),
  ids=("png", "pgm", "tiff"),
)
def test_sixteen_bits_keep_their_gray(data):
  assert run("decode", data)[0, 0].tolist() == [64, 64, 64]


@pytest.mark.parametrize(
  "array", (QUARTER.astype(np.int32), (QUARTER / 65535).astype(np.float32)), ids=("i32", "f32")
)
def test_pixels_without_a_known_range_are_bad(array):
  with pytest.raises(BadRecord, match="black and white"):
    run("decode", saved(array, "TIFF"))


def test_images_stand_upright_as_exif_says():
  image = Image.new("RGB", (6, 4))
  image.putpixel((0, 0), (255, 0, 0))
  exif = Image.Exif()
  exif[0x0112] = 6  # turned by a quarter: the first row of the file is the right side
  data = saved(image, "PNG", exif=exif)
  upright = run("decode", data)
  assert upright.shape == (6, 4, 3) and upright[0, 3].tolist() == [255, 0, 0]
  as_stored = run("decode(upright=False)", data)
  assert as_stored.shape == (4, 6, 3) and as_stored[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", ((1, 60_000), (60_000, 1), (1, 10_000_000)))
def test_an_extreme_image_is_not_blown_up(size):
  data = saved(Image.new("1", size))
  with pytest.raises(BadRecord):
    run("decode|resize_small(2240)|central_crop(224)", data)


def test_no_program_of_others_is_started():
  """EPS would start Ghostscript: Pillow is not even to try it."""
  eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
  assert Image.open(io.BytesIO(eps)).format == "EPS"
  with pytest.raises(BadRecord, match="UnidentifiedImageError"):
    run("decode", eps)


@pytest.mark.parametrize("shape", ((40, 40), (20, 60), (60, 20), (10, 90)))
def test_random_resized_crops_keep_their_areas_and_ratios(shape, monkeypatch):
  """Of the boxes: redrawn until they fit; where none can, the middle at an allowed ratio."""
  boxes = []

  def resize(self, size, method, box):
    boxes.append(box)
    return Image.new("RGB", size)

  monkeypatch.setattr(Image.Image, "resize", resize)
  image = np.zeros((*shape, 3), np.uint8)
  for seed in range(200):
    preprocess.parse("random_resized_crop(8, 0.3, 1.5)").finish(
      {"image": image}, np.random.default_rng(seed)
    )
  left, top, right, bottom = np.array(boxes).T
  width, height = right - left, bottom - top
  assert (left >= 0).all() and (top >= 0).all()
  assert (right <= shape[1]).all() and (bottom <= shape[0]).all()
  # Sides are rounded to whole pixels.
  assert ((width + 0.5) / (height - 0.5) >= 1 / 1.5).all()
  assert ((width - 0.5) / (height + 0.5) <= 1.5).all()
  area = width * height / np.prod(shape)
  if shape != (10, 90):  # there no allowed box has 0.3 of the area
    assert (area >= 0.3 * 0.9).all() and area.max() > 0.3
  if shape == (40, 40):
    assert area.min() < 0.4 and area.max() > 0.9


@pytest.mark.parametrize("shape", ((20, 60), (60, 20), (30, 30)))
def test_square_crops(shape):
  column = np.arange(max(shape), dtype=np.uint8)
  image = np.zeros((*shape, 3), np.uint8)
  image[..., 0] = column[: shape[0], None] if shape[0] > shape[1] else column[None, : shape[1]]
  first = [run("square_crop", image, seed) for seed in range(60)]
  assert {x.shape for x in first} == {(min(shape), min(shape), 3)}
  room = max(shape) - min(shape)
  begins = [int(x[0, 0, 0]) for x in first]
  assert min(begins) < room / 8 + 1 and max(begins) > 7 * room / 8 - 1
  near = [int(run("square_crop(0.25)", image, seed)[0, 0, 0]) for seed in range(60)]
  assert min(near) >= 3 * room / 8 - 1 and max(near) <= 5 * room / 8 + 1
