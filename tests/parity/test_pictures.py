"""Images before a network sees them: vlx's ops against open_clip's and transformers'."""

import types

import numpy as np
import pytest
from recorded import Recorded

from vlx.core.errors import UserError
from vlx.data.transforms import preprocess
from vlx.pretrained import clip, preprocessor, vit

RECORDED = Recorded("pictures", "pictures")
SIZE = 24
LEVEL = 1 / 255
# The classes on Pillow have its pixels. torchvision's, on tensors, may round one the other way.
LEVELS = {"open_clip": 0, "clip_pil": 0, "vit_pil": 0, "clip": 1, "vit": 1}


def ops_of(kind):
  if kind == "open_clip":
    return clip.openai_preprocess(SIZE)
  return preprocessor.image_ops(RECORDED.config[kind])


@pytest.mark.parametrize("key", sorted(RECORDED.outputs))
def test_pixels_are_the_references(key):
  kind, name = key.split(".")
  if key == "open_clip.palette":
    pytest.skip("Pillow resizes the indices of a palette, to the nearest; vlx resizes colors")
  parsed = preprocess.parse(ops_of(kind))
  found = parsed.finish(parsed.prepare({"image": RECORDED.inputs[name].tobytes()}), None)["image"]
  std = 0.5 if kind.startswith("vit") else np.float32(clip.STD)
  apart = np.abs(found - RECORDED.outputs[key]) * std / LEVEL
  assert found.dtype == np.float32
  assert apart.max() <= LEVELS[kind] + 1e-4
  assert (apart > 0.5).mean() < 0.25  # of rounded halves


def sized(image_size):
  tower = types.SimpleNamespace(image_size=image_size)
  return types.SimpleNamespace(image=tower, tower=tower)


MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]


def test_older_preprocessors_mean_the_same():
  """clip-vit-base-patch32's of 2021, vit-base-patch16-224's, and their sizes in words."""
  older = dict(
    crop_size=224,
    do_center_crop=True,
    do_normalize=True,
    do_resize=True,
    image_mean=MEAN,
    image_std=STD,
    resample=3,
    size=224,
  )
  newer = dict(older, crop_size={"height": 224, "width": 224}, size={"shortest_edge": 224})
  expected = (
    "decode|resize_small(224, method='bicubic')|central_crop(224)|"
    f"normalize({tuple(MEAN)}, {tuple(STD)})"
  )
  for config in (older, newer, {}):
    assert clip.preprocess(sized(224), config) == expected
  older = dict(
    do_normalize=True, do_resize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3, size=224
  )
  newer = dict(older, size={"height": 224, "width": 224}, resample=2)
  for config in (older, newer, {}, None):
    assert vit.preprocess(sized(224), config) == (
      "decode|resize(224, 224, method='bilinear')|normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))"
    )


@pytest.mark.parametrize(
  "change, message",
  [
    ({"size": {"longest_edge": 9}}, "size is {'longest_edge': 9}; vlx knows shortest_edge"),
    ({"size": -1}, "size is -1; not a positive whole number"),
    ({"resample": 9}, "resample is 9"),
    ({"image_std": [0.5]}, r"image_std is \[0.5\]; not three numbers"),
    (
      {"do_center_crop": True, "crop_size": {"height": 3, "width": 4}},
      "crop_size is .*; vlx crops squares",
    ),
  ],
)
def test_an_absurd_preprocessor_is_told(change, message):
  with pytest.raises(UserError, match=message):
    vit.preprocess(sized(224), change)
