"""The embedded data: its counts, and that no split leaks into another."""

import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from vlx.data.datasets import emoji
from vlx.data.sources import open_source

COUNTS = {"train": 5592, "concept": 637, "combo": 404, "style": 2796, "style_new": 634}


@pytest.fixture(scope="module")
def records():
  found = {}
  for split in COUNTS:
    source = open_source("tfds:emoji", split)
    found[split] = [source[i] for i in range(len(source))]
  return found


def test_counts(records):
  assert {split: len(rows) for split, rows in records.items()} == COUNTS
  vendors = [r for split in ("train", "concept", "combo") for r in records[split]]
  assert len(vendors) == 6633
  assert len({r["sequence"] for r in vendors}) == 3319
  assert len({r["caption"] for r in vendors}) == 3319
  assert len({r["base"] for r in vendors}) == 1641


def test_it_can_be_made_where_nobody_made_it_before(records):
  del records  # which reads what was made, if it was
  assert tfds.builder_cls("emoji").VERSION == "1.0.0"


def test_no_base_concept_of_the_concept_split_is_trained(records):
  trained = {r["base"] for r in records["train"]} | {r["base"] for r in records["combo"]}
  assert not trained & {r["base"] for r in records["concept"]}


def test_combo_has_its_parts_in_training_but_never_together(records):
  trained = {r["sequence"] for r in records["train"]}
  assert not trained & {r["sequence"] for r in records["combo"]}
  tones = {tone for s in trained for tone in emoji.tones_of(s)}
  bases = {emoji.base_concept(s) for s in trained}
  for record in records["combo"]:
    assert set(emoji.tones_of(record["sequence"])) <= tones and record["base"] in bases


def test_style_is_the_trained_sequences_in_another_hand(records):
  assert {r["sequence"] for r in records["style"]} == {r["sequence"] for r in records["train"]}
  known = {r["sequence"] for split in ("train", "concept", "combo") for r in records[split]}
  assert not known & {r["sequence"] for r in records["style_new"]}
  assert {r["style"] for r in records["style"]} == {emoji.STYLES.index("openmoji")}


def test_captions_are_names_in_lower_case():
  captions = emoji.captions()
  assert captions["\U0001f1f0\U0001f1ea"] == "flag of kenya"
  assert captions["\U0001f44b\U0001f3ff"] == "waving hand dark skin tone"
  assert captions["\U0001f469\u200d\U0001f680"] == "woman astronaut"


@pytest.mark.parametrize(
  "sequence,base",
  [
    ("\U0001f469\U0001f3fe\u200d\U0001f680", "\U0001f9d1\u200d\U0001f680"),  # woman astronaut
    ("\U0001f3c3\U0001f3fb\u200d\u2640", "\U0001f3c3"),  # woman running
  ],
)
def test_base_concept_drops_tone_and_gender(sequence, base):
  assert emoji.base_concept(sequence) == base


def test_groups_are_unicodes(records):
  group = {
    r["sequence"]: list(emoji.GROUPS)[r["label"]] for r in records["train"] + records["concept"]
  }
  assert group["\U0001f9c2"] == "food_drink"  # salt
  assert group["\U0001f606"] == "smileys_emotion"  # grinning squinting face
  assert group["\U0001f468\U0001f3ff\u200d\U0001f680"] == "people_body"  # man astronaut
  assert set(group.values()) == set(emoji.GROUPS)


def test_images_are_images(records):
  """72x72, and what is opaque is not one flat color: no placeholder came through."""
  for split in COUNTS:
    for record in records[split][::97]:
      image = np.asarray(Image.open(io.BytesIO(record["image"])).convert("RGBA"))
      assert image.shape == (72, 72, 4), record["caption"]
      assert image[image[..., 3] > 0].std() > 0, record["caption"]
