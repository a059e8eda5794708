"""Scenes: images composed from emoji sprites, of which everything is known.

  scenes:COUNT[?size=128&held_out=1000]      "scenes:20000", "scenes:20000?size=96"

COUNT is of `train`; `held_out` of each other split; `size` is the image's side in pixels. Record i
of a split is a function of (split, i) alone: it is the same scene whatever the count and the size.

  train     scenes of trained nouns, in colors they are trained in
  val       other scenes of the same kind
  combo     each with a noun in a color it was never trained in (both trained apart)
  concept   each with a noun that is in no other split (the nouns that the emoji data holds out)

A noun in a color is held out if SHA-1("c" + its emoji + color), as in the emoji data, is below
0.15.

A scene has one to three *things*: a noun, drawn as it is or in one of eight colors, big, medium or
small, once to three times; at most five sprites, whose boxes lie apart. A record:

  image        PNG, RGB
  caption      five different captions (str); each names all things (vlx.data.datasets.scenes.language)
  objects      a dict for each sprite: name, color ("" where drawn as it is), size (small, medium, big),
               style (noto, twemoji), box (x1, y1, x2, y2 in [0, 1]; it holds all of the sprite's
               pixels)
  relations    (i, "left" | "right" | "above" | "below", j): objects[i] lies so of objects[j], with a gap
               between their boxes; both (i, "left", j) and (i, "above", j) where both are so
  background   (color, pattern)
  questions    (question, answer), of what, where, how many, what color, how big, is there
  index        i

All sequences are tuples. Films and dialogues can be made of `compose(split, index)` as captions
are.
"""

import itertools
import random
import urllib.parse

from vlx.core.config import nearest
from vlx.core.errors import UserError
from vlx.data.datasets.scenes import composition, language, sprites
from vlx.data.records import strings

SPLITS = ("train", "val", "combo", "concept")
TEXTS = {"caption": language.captions, "questions": language.questions}


class ScenesSource:
  """`scenes:COUNT?size=…&held_out=…` (see the module)."""

  def __init__(self, spec: str, split: str):
    if split not in SPLITS:
      raise UserError(f"no split {split!r} in scenes: {nearest(split, SPLITS)}")
    count, _, options = spec.partition("?")
    numbers = {"size": "128", "held_out": "1000"}
    for name, value in urllib.parse.parse_qsl(options, keep_blank_values=True):
      if name not in numbers:
        raise UserError(f"no option {name!r} of scenes: {nearest(name, numbers)}")
      numbers[name] = value
    numbers["COUNT"] = count
    for name, value in numbers.items():
      if not value.isdecimal() or not int(value):
        raise UserError(
          f"scenes:COUNT?size=N&held_out=N: whole numbers above 0, not {name} {value!r}"
        )
    self._count = int(numbers["COUNT"] if split == "train" else numbers["held_out"])
    self._size, self._split = int(numbers["size"]), split

  def __len__(self):
    return self._count

  def scene(self, index: int) -> composition.Scene:
    """The scene of record `index`."""
    return composition.compose(self._split, index)

  def _text(self, field, shown, index):
    return TEXTS[field](shown, random.Random(f"{field} {self._split} {index}"))

  def __getitem__(self, index):
    index = int(index)
    if not 0 <= index < len(self):  # what ends a `for`: a scene could be composed for any number
      raise IndexError(f"record {index} of {len(self)}")
    shown = self.scene(index)
    pairs = itertools.permutations(range(len(shown.objects)), 2)
    return {
      "image": sprites.paint(shown.objects, shown.background, self._size),
      **{field: self._text(field, shown, index) for field in TEXTS},
      "objects": tuple(o._asdict() for o in shown.objects),
      "relations": tuple(
        (i, r, j)
        for i, j in pairs
        for r in composition.RELATIONS
        if composition.holds(r, shown.objects[i], shown.objects[j])
      ),
      "background": shown.background,
      "index": index,
    }

  def name(self, index):
    return f"scenes/{self._split}#{index}"

  def texts(self, fields):
    if unknown := sorted({*fields} - {*TEXTS}):
      raise UserError(f"scenes have no text field {unknown[0]!r}: {nearest(unknown[0], TEXTS)}")
    for index in range(len(self)):
      shown = self.scene(index)
      for field in fields:
        for text in self._text(field, shown, index):
          yield from strings(text)
