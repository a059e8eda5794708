"""The composition of a scene, a function of (split, index). See
vlx.data.datasets.scenes.source.
"""

import functools
import itertools
import random
from typing import NamedTuple

from vlx.data.datasets import emoji
from vlx.data.datasets.scenes import sprites

HELD_OUT_COLORS = 0.15

# Longest side of a sprite as a share of the image's; between the sizes there is room.
SIZES = {"small": (0.18, 0.22), "medium": (0.28, 0.33), "big": (0.43, 0.49)}
GAP = 0.03  # between any two boxes
MARGIN = 0.02  # between a box and the image's edge
MOST_SPRITES = 5

RELATIONS = ("left", "right", "above", "below")
PLACES = ("left", "right", "top", "bottom", "middle")


class Object(NamedTuple):
  """A sprite in a scene."""

  name: str
  color: str  # "": as it is drawn
  size: str
  style: str
  box: tuple[float, float, float, float]  # x1, y1, x2, y2 in [0, 1]


class Scene(NamedTuple):
  objects: tuple[Object, ...]
  background: tuple[str, str]  # color, pattern

  def things(self) -> list[tuple[Object, ...]]:
    """Objects of equal name, color and size together."""
    return [tuple(group) for _, group in itertools.groupby(self.objects, key=lambda o: o[:3])]


def holds(relation: str, a: Object, b: Object) -> bool:
  """Whether `a` lies left of, … `b`: with a gap between their boxes."""
  first, second, axis = {
    "left": (a, b, 0),
    "right": (b, a, 0),
    "above": (a, b, 1),
    "below": (b, a, 1),
  }[relation]
  return first.box[axis + 2] + GAP <= second.box[axis] + 1e-9


def clearly(relation: str, a: Object, b: Object) -> bool:
  """Whether it holds, and is what one would say: the way between their centers goes mostly
  there.
  """
  across, down = (abs(a.box[k] + a.box[k + 2] - b.box[k] - b.box[k + 2]) for k in (0, 1))
  return holds(relation, a, b) and (across >= down) == (relation in ("left", "right"))


def is_at(place: str, thing: Object) -> bool:
  """Whether the object's center is in the left (right, upper, lower, middle) part of the image."""
  x, y = (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2
  return {
    "left": x < 0.4,
    "right": x > 0.6,
    "top": y < 0.4,
    "bottom": y > 0.6,
    "middle": 0.35 < x < 0.65 and 0.35 < y < 0.65,
  }[place]


@functools.cache
def nouns(held_out: bool) -> tuple[str, ...]:
  """The nouns of the `concept` split, or those that are trained."""
  sequences = sprites.sequences()
  return tuple(
    n for n in sprites.ALL_NOUNS if (emoji.split_of(sequences[n]) == "concept") == held_out
  )


@functools.cache
def colors(noun: str, held_out: bool) -> tuple[str, ...]:
  """The colors a noun is painted in: trained ones, or those of `combo`.

  Never one that it passes for as it is drawn.
  """
  return tuple(
    c
    for c in sprites.COLORS
    if c not in sprites.natural_colors(noun)
    and (emoji.fraction("c" + sprites.sequences()[noun] + c) < HELD_OUT_COLORS) == held_out
  )


def compose(split: str, index: int) -> Scene:
  """Scene `index` of a split."""
  rng = random.Random(f"scene {split} {index}")
  while True:
    found = _place(_things(split, rng), rng)
    if found:
      return Scene(found, (rng.choice(tuple(sprites.BACKGROUNDS)), rng.choice(sprites.PATTERNS)))


def _things(split, rng) -> list[tuple[str, str, str, int]]:
  """(name, color, size, count) of each thing."""
  count = rng.choices((1, 2, 3), (0.2, 0.45, 0.35))[0]
  trained = nouns(held_out=False)
  first = rng.choice(
    {
      "concept": nouns(held_out=True),
      "combo": [n for n in trained if colors(n, held_out=True)],
    }.get(split, trained)
  )
  names = [first, *rng.sample([n for n in trained if n != first], count - 1)]
  painted = [rng.choice(colors(n, held_out=False)) if rng.random() < 0.6 else "" for n in names]
  if split == "combo":
    painted[0] = rng.choice(colors(first, held_out=True))
  things = []
  for name, color in zip(names, painted):
    number = rng.choices((1, 2, 3), (0.76, 0.15, 0.09))[0]
    sizes = ("small", "medium", "big") if number == 1 else ("small", "medium")
    things.append((name, color, rng.choice(sizes), number))
  if count > 1 and rng.random() < 0.15:  # two of one kind, told apart by their colors
    name, color, size, _ = things[0]
    if not color:
      color = rng.choice(colors(name, held_out=False))
    other = rng.choice([c for c in colors(name, held_out=False) if c != color])
    things[:2] = (name, color, size, 1), (name, other, rng.choice(tuple(SIZES)), 1)
  rng.shuffle(things)
  return things


def _place(things, rng) -> tuple[Object, ...] | None:
  """Boxes that lie apart, the big ones placed first; None where there is no room."""
  drawn = []
  for name, color, size, number in things:
    style, side = rng.choice(sprites.STYLES), rng.uniform(*SIZES[size])
    aspect = sprites.aspect(style, name)
    width, height = (side, side / aspect) if aspect > 1 else (side * aspect, side)
    drawn += [(name, color, size, style, width, height)] * number
  if len(drawn) > MOST_SPRITES:
    return None
  boxes: dict[int, tuple[float, ...]] = {}
  for i in sorted(range(len(drawn)), key=lambda i: -max(drawn[i][4:])):
    width, height = drawn[i][4:]
    for _ in range(40):
      x, y = (round(rng.uniform(MARGIN, 1 - MARGIN - side), 4) for side in (width, height))
      box = (x, y, round(x + width, 4), round(y + height, 4))
      if all(_apart(box, other) for other in boxes.values()):
        boxes[i] = box
        break
    else:
      return None
  return tuple(Object(*sprite[:4], boxes[i]) for i, sprite in enumerate(drawn))


def _apart(a, b) -> bool:
  return any(a[k + 2] + GAP <= b[k] or b[k + 2] + GAP <= a[k] for k in (0, 1))
