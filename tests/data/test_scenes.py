"""Scenes: what is painted is what is written down, what is said is true, what is held out is
held out.
"""

import colorsys
import hashlib
import io
import itertools
import pickle
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlx.core.errors import UserError
from vlx.data.datasets.scenes import composition, language, sprites, truth
from vlx.data.datasets.scenes.source import SPLITS
from vlx.data.sources import open_source

COUNT = 300


@pytest.fixture(scope="module")
def records():
  found = {}
  for split in SPLITS:
    source = open_source(f"scenes:{COUNT}?size=64&held_out={COUNT}", split)
    found[split] = [source[i] for i in range(COUNT)]
  return found


def scene_of(split, record):
  return composition.compose(split, record["index"])


def test_a_scene_is_a_function_of_split_and_index():
  """Whatever the count and the size, in another process, asked in another order."""
  small, large = (open_source(f"scenes:{n}?size={s}", "train") for n, s in ((10, 48), (1000, 96)))
  for i in (9, 0, 4):
    one, other, copy = small[i], large[i], pickle.loads(pickle.dumps(small))[i]
    assert one == copy
    assert one.pop("image") != other.pop("image") and one == other
  assert composition.compose("train", 0) != composition.compose("val", 0)


def test_scenes_are_the_same_everywhere_and_for_good():
  """Published figures are of exactly these scenes and words; a change of them is another data
  set.
  """
  sources = {split: open_source("scenes:20", split) for split in SPLITS}
  said = repr(
    [
      (source.scene(i), source[i]["caption"], source[i]["questions"])
      for source in sources.values()
      for i in range(20)
    ]
  )
  assert hashlib.sha1(said.encode()).hexdigest() == "610a121ce84dc40280047853f7e735f1d3604f94"


def test_nouns_are_drawn_by_both_vendors_and_stand_in_their_group():
  from vlx.data.datasets import emoji

  for group, names in sprites.NOUNS.items():
    for name in names.split():
      assert emoji.annotation(sprites.sequences()[name])[0] == group
      assert all((style, name) in sprites.sprites() for style in sprites.STYLES)
  assert len(sprites.ALL_NOUNS) == len(set(sprites.ALL_NOUNS)) == 232
  assert len(composition.nouns(held_out=True)) == 25


def pairs_of(rows):
  return {(o["name"], o["color"]) for r in rows for o in r["objects"] if o["color"]}


def names_of(rows):
  return {o["name"] for r in rows for o in r["objects"]}


def test_nothing_held_out_is_trained(records):
  """Neither shown, nor told, nor asked for."""
  held = set(composition.nouns(held_out=True))
  held_pairs = {(n, c) for n in sprites.ALL_NOUNS for c in composition.colors(n, held_out=True)}
  for split in ("train", "val"):
    assert not names_of(records[split]) & held and not pairs_of(records[split]) & held_pairs
    for record in records[split]:
      for text in (*record["caption"], *(q for q, _ in record["questions"])):
        for m in truth.read(text).mentions:
          assert m.noun not in held and (m.noun, m.color) not in held_pairs, text


def test_what_is_held_out_is_asked_for_in_its_split(records):
  held = set(composition.nouns(held_out=True))
  trained = {
    (n, c) for n in composition.nouns(held_out=False) for c in composition.colors(n, held_out=False)
  }
  for record in records["concept"]:
    assert len(names_of([record]) & held) == 1
  for record in records["combo"]:
    assert not names_of([record]) & held
    new = pairs_of([record]) - trained
    assert len(new) == 1
    name, color = new.pop()
    assert any(n == name for n, _ in trained) and any(c == color for _, c in trained)


def test_every_trained_noun_has_colors_and_every_color_nouns():
  for noun in sprites.ALL_NOUNS:
    assert len(composition.colors(noun, held_out=False)) >= 3, noun
  for color in sprites.COLORS:
    assert sum(color in composition.colors(n, held_out=False) for n in sprites.ALL_NOUNS) > 100


def test_a_painted_sprite_has_its_color():
  """For every noun, style and color the mean of its pixels has the hue that is said; brown is
  dark.
  """

  def hue(rgb):
    h, saturation, _ = colorsys.rgb_to_hsv(*(np.asarray(rgb) / 255))
    return 360 * h, saturation

  for noun, style in itertools.product(sprites.ALL_NOUNS, sprites.STYLES):
    means = {}
    for color in sprites.COLORS:
      pixels = np.asarray(sprites.sprite(style, noun, color), float)
      means[color] = pixels[pixels[..., 3] > 127][:, :3].mean(axis=0)
      (found, saturation), (said, _) = hue(means[color]), hue(sprites.COLORS[color])
      assert abs((found - said + 180) % 360 - 180) < 8 and saturation > 0.3, (noun, style, color)
    assert means["brown"].sum() < 0.75 * means["orange"].sum()


@pytest.mark.parametrize("size", [48, 131])
def test_boxes_hold_the_sprites_pixels_tightly(size):
  source = open_source(f"scenes:{COUNT}?size={size}", "train")
  for i in range(60):
    record = source[i]
    image = np.asarray(Image.open(io.BytesIO(record["image"])), int)
    ground = np.asarray(sprites.background(*record["background"], size), int)
    assert image.shape == (size, size, 3)
    painted = np.abs(image - ground).max(axis=-1) > 0
    for box in (o["box"] for o in record["objects"]):
      x1, y1, x2, y2 = np.array(box) * size
      whole = np.s_[
        int(np.ceil(y1 - 1e-6)) : int(y2 + 1e-6), int(np.ceil(x1 - 1e-6)) : int(x2 + 1e-6)
      ]
      inside = painted[whole]
      # Something in each of the outer two rows and columns: the box is not larger than its sprite.
      for edge in (inside[:2], inside[-2:], inside[:, :2], inside[:, -2:]):
        assert edge.any(), (i, box)
      painted[whole] = False
    assert not painted.any()


def test_boxes_lie_apart_in_the_image(records):
  for record in itertools.chain(*records.values()):
    boxes = [o["box"] for o in record["objects"]]
    assert 1 <= len(boxes) <= composition.MOST_SPRITES
    assert all(0 <= a < b <= 1 for box in boxes for a, b in (box[::2], box[1::2]))
    for a, b in itertools.combinations(boxes, 2):
      assert any(x[k + 2] <= y[k] for k in (0, 1) for x, y in ((a, b), (b, a)))


def test_sizes_are_told_apart(records):
  side = {size: [] for size in composition.SIZES}
  for o in itertools.chain(*(r["objects"] for r in records["train"])):
    side[o["size"]].append(max(o["box"][2] - o["box"][0], o["box"][3] - o["box"][1]))
  assert max(side["small"]) + 0.05 < min(side["medium"]) and max(side["medium"]) + 0.05 < min(
    side["big"]
  )


def test_relations_are_those_of_the_boxes(records):
  opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
  for record in records["val"]:
    boxes = [o["box"] for o in record["objects"]]
    found = set(record["relations"])
    assert {(j, opposite[r], i) for i, r, j in found} == found
    assert {(i, j) for i, r, j in found if r == "left"} == {
      (i, j) for i, a in enumerate(boxes) for j, b in enumerate(boxes) if a[2] + 0.0299 < b[0]
    }
    # Boxes lie apart, so any two stand somehow.
    assert {(i, j) for i, _, j in found} == set(itertools.permutations(range(len(boxes)), 2))


def test_things_of_one_noun_have_colors_that_tell_them_apart(records):
  found = 0
  for split in SPLITS:
    for record in records[split]:
      shown = [t[0] for t in scene_of(split, record).things()]
      for noun in {o.name for o in shown}:
        same = [o.color for o in shown if o.name == noun]
        if len(same) > 1:
          assert all(same) and len(set(same)) == len(same)
          found += 1
  assert found > 50


def test_counts_go_up_to_three(records):
  counts = Counter(len(t) for r in records["train"] for t in scene_of("train", r).things())
  assert set(counts) == {1, 2, 3} and counts[1] > counts[2] > counts[3] > 10


@pytest.mark.parametrize("split", SPLITS)
def test_captions_are_five_and_wholly_true(records, split):
  """The reader is no part of the writer; it understands every word, also without punctuation."""
  kinds = Counter()
  for record in records[split]:
    assert len(set(record["caption"])) == 5
    for caption in record["caption"]:
      bare = re.sub(r"[.,]", "", caption)
      for text in (caption, bare):
        counts = truth.compare(text, scene_of(split, record))
        assert counts["exact"], text
      assert truth.read(caption) == truth.read(bare)
      kinds += counts
      # Nothing that is said was passed over.
      phrases = [w for p in language.RELATION_PHRASES.values() for w in p]
      related = caption.replace("the left side", "").replace("the right side", "")
      said = len(re.findall("|".join(sorted(phrases, key=len, reverse=True)), related))
      assert counts["relation"] == said, caption
      places = r"the (?:left|right)(?! of)|at the (?:top|bottom)|\bin the"
      assert counts["place"] == len(re.findall(places, caption))
  assert all(kinds[k] > 50 for k in truth.KINDS)


def test_one_changed_word_is_found_out(records):
  """Another noun, color, size, number, relation or place makes a true caption false."""
  opposite = {
    "left": "right",
    "right": "left",
    "above": "below",
    "over": "under",
    "below": "above",
    "under": "over",
    "top": "bottom",
    "bottom": "top",
    "big": "small",
    "large": "small",
    "small": "big",
    "little": "big",
    "two": "three",
    "three": "two",
    "striped": "dotted",
    "dotted": "plain",
    "gray": "white",
  }
  changes = Counter()
  for record in records["train"]:
    scene = scene_of("train", record)
    grounds = {scene.background[0], *(o.color for o in scene.objects)}
    natural = frozenset().union(*(sprites.natural_colors(o.name) for o in scene.objects))
    unused = next(c for c in sprites.COLORS if c not in grounds and c not in natural)
    for caption in record["caption"]:
      words = caption.split()
      for i, word in enumerate(words):
        other = opposite.get(word, unused if word in sprites.COLORS else None)
        other = "moose" if word in sprites.ALL_NOUNS else other
        if other is None:
          continue
        changed = " ".join([*words[:i], other, *words[i + 1 :]])
        changes[word] += 1
        assert not truth.compare(changed, scene)["exact"], changed
  assert len(changes) > 150


@pytest.mark.parametrize(
  "caption,mentions,relations,places",
  [
    (
      "a big red cat is to the left of two dogs",
      [("cat", 1, "big", "red"), ("dog", 2, None, None)],
      [(0, "left", 1)],
      [],
    ),
    (
      "above the dog there is a cat and a car",
      [("dog", None, None, None), ("cat", 1, None, None)],
      [(1, "above", 0)],
      [],
    ),
    (
      "on the left is a cat and on the right there is a dog",
      [("cat", 1, None, None), ("dog", 1, None, None)],
      [],
      [(0, "left"), (1, "right")],
    ),
    (
      "a cat on the left of the picture and a dog on the left of the cat",
      [("cat", 1, None, None), ("dog", 1, None, None)],
      [(1, "left", 0)],
      [(0, "left")],
    ),
    (
      "a cat over a dog and under a bus",
      [("cat", 1, None, None), ("dog", 1, None, None), ("bus", 1, None, None)],
      [(0, "above", 1), (0, "below", 2)],
      [],
    ),
    (
      "a dog and a cat. the cat is little and blue.",
      [("dog", 1, None, None), ("cat", 1, "small", "blue")],
      [],
      [],
    ),
    (
      "a cat on the left is red and a dog",
      [("cat", 1, None, "red"), ("dog", 1, None, None)],
      [],
      [(0, "left")],
    ),
    (
      "a cat and a dog. the big cat is above the dog",
      [("cat", 1, "big", None), ("dog", 1, None, None)],
      [(0, "above", 1)],
      [],
    ),
    (
      "two mice, a red fish and a green fish. the green fish is big",
      [("mouse", 2, None, None), ("fish", 1, None, "red"), ("fish", 1, "big", "green")],
      [],
      [],
    ),
  ],
)
def test_reading(caption, mentions, relations, places):
  reading = truth.read(caption)
  assert [(m.noun, m.count, m.size, m.color) for m in reading.mentions] == mentions
  assert (reading.relations, reading.places) == (relations, places)


WORDS = sorted(
  {word for phrase in truth._phrases() for word in phrase}
  | truth.FUNCTION_WORDS
  | {"<unk>", ".", ","}
)


@settings(max_examples=300, deadline=None)
@given(words=st.lists(st.sampled_from(WORDS), max_size=25), index=st.integers(0, 20))
def test_any_row_of_words_is_read_and_judged(words, index):
  """What a model says early in training: no more can be right than is said, nothing true comes
  of nothing.
  """
  scene = composition.compose("train", index)
  counts = truth.compare(" ".join(words), scene)
  assert all(0 <= counts[f"{k}_right"] <= counts[k] for k in truth.KINDS)
  assert (
    counts["named"] + counts["invented"] == counts["mentions"]
    and counts["named"] <= counts["things"]
  )
  reading = truth.read(" ".join(words))
  positions = [p for i, _, j in reading.relations for p in (i, j)] + [i for i, _ in reading.places]
  assert all(0 <= p < len(reading.mentions) for p in positions)
  if not set(words) & {form for o in scene.objects for form in (o.name, language.plural(o.name))}:
    assert not counts["named"] and not counts["exact"]


def test_words_outside_of_the_language_are_unknown():
  reading = truth.read("a <unk> cat and a platypus on a striped blue background")
  assert reading.unknown == ["<unk>", "platypus"]
  assert [(m.noun, m.color, m.pattern) for m in reading.mentions] == [
    ("cat", None, None),
    ("background", "blue", "striped"),
  ]


@pytest.mark.parametrize(
  "caption",
  [
    "a cat is above",
    "a cat left of above a dog",
    "on the left is",
    "a red blue cat",
    "a cat. the cat is red and blue",
    "a big",
    "a red cat and a dog. the cat is green",
  ],
)
def test_what_is_unfinished_or_contradicts_itself_is_not_understood(caption):
  assert truth.read(caption).unknown


def test_measures_of_captions_that_are_partly_wrong():
  def at(name, color, x, y, size="medium"):
    return composition.Object(name, color, size, "noto", (x - 0.1, y - 0.1, x + 0.1, y + 0.1))

  scene = composition.Scene(
    (at("cat", "red", 0.2, 0.2), at("dog", "blue", 0.8, 0.2), at("dog", "green", 0.8, 0.8)),
    ("pink", "plain"),
  )
  compare = lambda caption: dict(+truth.compare(caption, scene))
  assert compare("a red cat, a blue dog and a green dog on a pink background") == {
    "things": 3,
    "named": 3,
    "mentions": 3,
    "count": 3,
    "count_right": 3,
    "color": 3,
    "color_right": 3,
    "background": 1,
    "background_right": 1,
    "exact": 1,
  }
  # The green dog is there, the third dog is not; two relations, of which one is true.
  assert compare("a cat to the left of a green dog, a dog and a blue dog over a cow and a cat") == {
    "things": 3,
    "named": 3,
    "mentions": 6,
    "invented": 3,
    "count": 3,
    "count_right": 3,
    "color": 2,
    "color_right": 2,
    "relation": 2,
    "relation_right": 1,
  }
  found = truth.measures(
    [truth.compare("two red cats above a dog", scene), truth.compare("a cow", scene)]
  )
  assert found["objects_right"] == pytest.approx(100 * 2 / 6)
  assert found["invented"] == pytest.approx(100 / 3)
  assert (found["colors_right"], found["counts_right"], found["relations_right"]) == (100, 50, 0)
  assert found["exact"] == 0


def test_answers_are_right(records):
  """Each kind of question against the objects, by counting here."""
  kinds = Counter()
  singular = {language.plural(n): n for n in sprites.ALL_NOUNS} | {n: n for n in sprites.ALL_NOUNS}
  for record in itertools.chain(*records.values()):
    objects = record["objects"]
    assert len(record["questions"]) == len({q for q, _ in record["questions"]}) >= 5

    def of(words):
      *color, noun = words.removeprefix("the ").split()
      return [
        o for o in objects if o["name"] == singular[noun] and (not color or o["color"] == color[0])
      ]

    for question, answer in record["questions"]:
      if m := re.fullmatch(r"is there an? (.*)\?", question):
        right, kind = ("yes" if of(m[1]) else "no"), "is there " + answer
      elif m := re.fullmatch(r"how many (.*) are there\?", question):
        right, kind = str(len(of(m[1]))), "how many"
      elif "background" in question:
        right, kind = record["background"]["color" not in question], "background"
      elif m := re.fullmatch(r"what color (?:is|are) (.*)\?", question):
        right, kind = {o["color"] for o in of(m[1])}, "color"
      elif m := re.fullmatch(r"(?:is|are) (.*) big or small\?", question):
        right, kind = {o["size"] for o in of(m[1])}, "size"
      elif m := re.fullmatch(r"where (?:is|are) (.*) relative to (.*)\?", question):
        a, b = of(m[1]), of(m[2])
        assert all(
          (objects.index(x), answer, objects.index(y)) in record["relations"] for x in a for y in b
        )
        right, kind = answer, "relative"
      elif m := re.fullmatch(r"where (?:is|are) (.*)\?", question):
        centers = [
          ((o["box"][0] + o["box"][2]) / 2, (o["box"][1] + o["box"][3]) / 2) for o in of(m[1])
        ]
        x, y = (set(np.digitize(c, [0.35, 0.65]).tolist()) for c in zip(*centers))
        allowed = {
          "left": x <= {0, 1},
          "right": x <= {1, 2},
          "top": y <= {0, 1},
          "bottom": y <= {1, 2},
          "middle": x == y == {1},
        }
        right, kind = (answer if allowed[answer] else "another"), "place"
      else:
        how, other = re.fullmatch(r"what is (.*) (the .*)\?", question).groups()
        relation = next(r for r, p in language.RELATION_PHRASES.items() if how in p)
        there = {i for i, r, j in record["relations"] if r == relation and objects[j] in of(other)}
        right, kind = {objects[i]["name"] for i in there}, "what"
      assert right in (answer, {answer}), (question, answer, record["objects"])
      kinds[kind] += 1
  assert len(kinds) == 9 and min(kinds.values()) > 100, kinds


def test_texts_are_those_of_the_records(records):
  source = open_source(f"scenes:{COUNT}?size=64", "train")
  assert list(source.texts(("caption",))) == [c for r in records["train"] for c in r["caption"]]
  asked = itertools.islice(source.texts(("questions",)), 20)
  assert (
    list(asked) == [t for r in records["train"][:9] for pair in r["questions"] for t in pair][:20]
  )


@pytest.mark.parametrize(
  "spec,split,message",
  [
    ("scenes:10", "test", "no split 'test' in scenes"),
    ("scenes:", "train", "COUNT ''"),
    ("scenes:ten", "train", "COUNT 'ten'"),
    ("scenes:10?sise=9", "train", "no option 'sise' of scenes.*size"),
    ("scenes:10?size=0", "train", "size '0'"),
    ("scenes:10?held_out", "val", "held_out ''"),
  ],
)
def test_specs_that_are_none(spec, split, message):
  with pytest.raises(UserError, match=message):
    open_source(spec, split)
