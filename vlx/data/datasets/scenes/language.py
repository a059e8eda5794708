"""The language of scenes: captions in varied wording, questions with answers.

The words and phrases below are the whole language; vlx.data.datasets.scenes.truth reads it back. It
can be read without punctuation too, as a tokenizer of words leaves it.
"""

import random

from vlx.data.datasets.scenes import composition

SIZE_WORDS = {"big": ("big", "large"), "small": ("small", "little")}
NUMBERS = {1: "one", 2: "two", 3: "three"}
RELATION_PHRASES = {
  "left": ("to the left of", "left of", "on the left of"),
  "right": ("to the right of", "right of", "on the right of"),
  "above": ("above", "over"),
  "below": ("below", "under", "underneath"),
}
PLACE_PHRASES = {
  "left": ("on the left", "on the left side"),
  "right": ("on the right", "on the right side"),
  "top": ("at the top", "at the top of the picture"),
  "bottom": ("at the bottom", "at the bottom of the picture"),
  "middle": ("in the middle", "in the center"),
}
IRREGULAR = {
  "bison": "bison",
  "deer": "deer",
  "fish": "fish",
  "mouse": "mice",
  "ox": "oxen",
  "scarf": "scarves",
  "shrimp": "shrimp",
  "snowman": "snowmen",
  "squid": "squid",
  "wolf": "wolves",
}

Thing = tuple[composition.Object, ...]


def plural(noun: str) -> str:
  if noun in IRREGULAR:
    return IRREGULAR[noun]
  if noun.endswith("y") and noun[-2] not in "aeiou":
    return noun[:-1] + "ies"
  if noun.endswith(("s", "x", "ch", "sh")) or noun in ("mango", "potato", "tomato"):
    return noun + "es"
  return noun + "s"


def _with_article(words: str) -> str:
  vowel = words[0] in "aeio" or words.startswith("umbrella")  # "a unicorn"
  return f"{'an' if vowel else 'a'} {words}"


def _noun(thing: Thing) -> str:
  return thing[0].name if len(thing) == 1 else plural(thing[0].name)


def _is(thing: Thing) -> str:
  return "is" if len(thing) == 1 else "are"


def _clearly(relation: str, a: Thing, b: Thing) -> bool:
  return all(composition.clearly(relation, x, y) for x in a for y in b)


class _Wording:
  """Phrases for the things of one scene."""

  def __init__(self, things: list[Thing], rng: random.Random):
    self._names = [thing[0].name for thing in things]
    self._rng = rng

  def needs_color(self, thing: Thing) -> bool:
    """Whether the scene has another thing of that noun."""
    return self._names.count(thing[0].name) > 1

  def phrase(self, thing: Thing, color: float = 0.8, size: float = 0.5) -> str:
    """As in "a small red cat", "two cats"; color and size with these chances."""
    shown, rng, words = thing[0], self._rng, []
    if shown.size in SIZE_WORDS and rng.random() < size:
      words.append(rng.choice(SIZE_WORDS[shown.size]))
    if shown.color and (self.needs_color(thing) or rng.random() < color):
      words.append(shown.color)
    words = " ".join([*words, _noun(thing)])
    if len(thing) == 1 and rng.random() < 0.9:
      return _with_article(words)
    return f"{NUMBERS[len(thing)]} {words}"

  def again(self, thing: Thing) -> str:
    """As in "the cat", "the red cat" where there are two."""
    color = f"{thing[0].color} " if self.needs_color(thing) else ""
    return f"the {color}{_noun(thing)}"


def captions(scene: composition.Scene, rng: random.Random) -> tuple[str, ...]:
  """Five different captions; the possible ways to tell take turns, how things stand to each
  other twice.
  """
  things = scene.things()
  wording = _Wording(things, rng)
  tellers = [t for t in (_related, _related, _placed, _predicated) if t(things, wording, rng)] + [
    _listed
  ]
  rng.shuffle(tellers)
  found: dict[str, None] = {}
  turn = 0
  while len(found) < 5:
    order = rng.sample(things, len(things))
    text = tellers[turn % len(tellers)](order, wording, rng)
    if rng.random() < 0.4:
      text += _background(text, scene.background, rng)
    found[text] = None
    turn += 1
  return tuple(found)


def _joined(parts: list[str]) -> str:
  return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]


def _listed(things, wording, rng) -> str:
  """As in "an image of a cat, two dogs and a car"."""
  start = rng.choice(
    (
      "",
      "",
      "a picture of ",
      f"there {_is(things[0])} ",
      "this picture shows ",
      "we see ",
      "an image with ",
    )
  )
  return start + _joined([wording.phrase(t) for t in things])


def _placed(things, wording, rng) -> str:
  """As in "a cat on the left and a dog", "on the left is a cat"; "" where nothing has a place."""
  places = [
    [p for p in composition.PLACES if all(composition.is_at(p, o) for o in t)] for t in things
  ]
  if not any(places):
    return ""
  first = next(i for i, p in enumerate(places) if p)
  told = [bool(p) and (i == first or rng.random() < 0.7) for i, p in enumerate(places)]
  where = [rng.choice(PLACE_PHRASES[rng.choice(p)]) if t else "" for p, t in zip(places, told)]
  if first == 0 and rng.random() < 0.3:
    parts = [f"{wording.phrase(t)} {w}".rstrip() for t, w in zip(things[1:], where[1:])]
    opening = f"{where[0]} {rng.choice(('there ', ''))}{_is(things[0])} {wording.phrase(things[0])}"
    return _joined([opening, *parts])
  return _joined([f"{wording.phrase(t)} {w}".rstrip() for t, w in zip(things, where)])


def _related(things, wording, rng) -> str:
  """As in "a cat is above a dog and a car to the left of the cat"; "" where no two things stand so."""
  pairs = [
    (a, r, b)
    for a in things
    for b in things
    for r in composition.RELATIONS
    if a is not b and _clearly(r, a, b)
  ]
  if not pairs:
    return ""
  a, relation, b = rng.choice(pairs)
  how = rng.choice(RELATION_PHRASES[relation])
  one, other = wording.phrase(a), wording.phrase(b)
  text = rng.choice(
    (
      f"{one} {how} {other}",
      f"{one} {_is(a)} {how} {other}",
      f"there {_is(a)} {one} {how} {other}",
      f"{how} {other} {rng.choice(('there ', ''))}{_is(a)} {one}",
    )
  )
  for c in things:
    if c is a or c is b:
      continue
    to = rng.choice((a, b))
    ways = [r for r in composition.RELATIONS if _clearly(r, c, to)]
    if ways and rng.random() < 0.7:
      how = rng.choice(RELATION_PHRASES[rng.choice(ways)])
      text += f" and {wording.phrase(c)} {how} {wording.again(to)}"
    else:
      text += f". there {_is(c)} also {wording.phrase(c)}"
  return text


def _predicated(things, wording, rng) -> str:
  """As in "a cat and a dog. the cat is red"; "" where no thing has a color or a size to tell."""
  new = (
    lambda t: [  # what the noun phrase alone does not say
      *SIZE_WORDS.get(t[0].size, ())[:1],
      *([t[0].color] if t[0].color and not wording.needs_color(t) else []),
    ]
  )
  told = [t for t in things if new(t)]
  if not told:
    return ""
  chosen = told[: rng.choice((1, 2))]
  text = _joined(
    [wording.phrase(t, 0.0, 0.0) if t in chosen else wording.phrase(t) for t in things]
  )
  for thing in chosen:
    words = rng.sample(new(thing), len(new(thing)))
    text += f". {wording.again(thing)} {_is(thing)} {' and '.join(words)}"
  return text


def _background(text, background, rng) -> str:
  color, pattern = background
  words = rng.choice((color, pattern, f"{pattern} {color}", f"{pattern} {color}"))
  if ". " in text or rng.random() < 0.3:
    return f". the background is {words.replace(' ', ' and ')}"
  return f" {rng.choice(('on', 'against'))} {_with_article(words)} background"


def questions(scene: composition.Scene, rng: random.Random) -> tuple[tuple[str, str], ...]:
  """(question, answer) pairs, each with one right answer; nouns and colors asked for are trained ones."""
  things = scene.things()
  names = [t[0].name for t in things]
  single = [t for t in things if names.count(t[0].name) == 1]  # "the cat" means this one
  absent = rng.choice([n for n in composition.nouns(held_out=False) if n not in names])
  found = [
    _is_there(things, rng),
    (f"is there {_with_article(absent)}?", "no"),
    ("what color is the background?", scene.background[0]),
    ("what pattern does the background have?", scene.background[1]),
  ]
  name = rng.choice(names) if rng.random() < 0.85 else absent
  number = sum(o.name == name for o in scene.objects)
  found.append((f"how many {plural(name)} are there?", str(number)))
  found += [wrong] if (wrong := _wrong_color(things, rng)) else []
  for thing in single:
    the = f"{_is(thing)} the {_noun(thing)}"
    if thing[0].color:
      found.append((f"what color {the}?", thing[0].color))
    if thing[0].size in SIZE_WORDS:
      found.append((f"{the} big or small?", thing[0].size))
    places = [p for p in composition.PLACES if all(composition.is_at(p, o) for o in thing)]
    if len(places) == 1:
      found.append((f"where {the}?", places[0]))
  found += _about_relations(things, single, rng)
  rng.shuffle(found)
  return tuple(found)


def _is_there(things, rng):
  shown = rng.choice(things)[0]
  color = f"{shown.color} " if shown.color and rng.random() < 0.5 else ""
  return f"is there {_with_article(color + shown.name)}?", "yes"


def _wrong_color(things, rng):
  """A noun of the scene in a color that it does not have here, but has in training."""
  name = rng.choice(things)[0].name
  here = {t[0].color for t in things if t[0].name == name}
  others = [c for c in composition.colors(name, held_out=False) if c not in here]
  if not others:
    return None
  return f"is there {_with_article(f'{rng.choice(others)} {name}')}?", "no"


def _about_relations(things, single, rng) -> list[tuple[str, str]]:
  found = []
  for b in single:
    relation = rng.choice(composition.RELATIONS)
    there = [a for a in things if any(composition.holds(relation, x, y) for x in a for y in b)]
    if len(there) == 1 and there[0] is not b and _clearly(relation, there[0], b):
      how = RELATION_PHRASES[relation][0]
      found.append((f"what is {how} the {_noun(b)}?", there[0][0].name))
    others = [a for a in single if a is not b]
    if others:
      a = rng.choice(others)
      ways = [r for r in composition.RELATIONS if _clearly(r, a, b)]
      if len(ways) == 1:
        found.append((f"where {_is(a)} the {_noun(a)} relative to the {_noun(b)}?", ways[0]))
  return found
