"""Reads a caption of a scene back, and says what of it is true.

The reader knows the words of vlx.data.datasets.scenes.language and no sentence of it: it takes a
caption, right or wrong, word by word, with or without punctuation. A noun phrase, a phrase of place
or of relation, and adjectives are what it looks for; a word that it does not know is counted.
"""

import dataclasses
import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable

from vlx.data.datasets.scenes import composition, language, sprites

VERBS = frozenset(("is", "are", "there", "stands", "stand"))
FUNCTION_WORDS = VERBS | frozenset(
  "a an the of in on against at and with we see you can this that picture image photo shows showing also it".split()
)
ARTICLES = {"a": 1, "an": 1, "the": None}
ADJECTIVES = ("size", "color", "pattern")
NUMBERS = {word: number for number, word in language.NUMBERS.items()}


@dataclasses.dataclass
class Mention:
  """A noun and what is said of it; None: nothing."""

  noun: str
  count: int | None = None
  size: str | None = None
  color: str | None = None
  pattern: str | None = None  # of the background


@dataclasses.dataclass
class Reading:
  """The content of a caption: `mentions`, and by their positions who stands where."""

  mentions: list[Mention]
  relations: list[tuple[int, str, int]]
  places: list[tuple[int, str]]
  unknown: list[str]  # words that are not in the language, or make no sense where they stand


@functools.cache
def _phrases() -> dict[tuple[str, ...], tuple[str, str]]:
  """Words → (kind, meaning)."""
  found = {}
  for kind, table in (
    ("relation", language.RELATION_PHRASES),
    ("place", language.PLACE_PHRASES),
    ("size", language.SIZE_WORDS),
  ):
    for meaning, phrases in table.items():
      for phrase in phrases:
        found[tuple(phrase.split())] = kind, meaning
  # "on the left of the image" is a place, "on the left of the cat" a relation.
  for side in ("left", "right"):
    found["on", "the", side, "of", "the", "picture"] = "place", side
  for noun in (*sprites.ALL_NOUNS, "background"):
    found[noun,] = found[language.plural(noun),] = "noun", noun
  found |= {(c,): ("color", c) for c in (*sprites.COLORS, *sprites.BACKGROUNDS)}
  found |= {(p,): ("pattern", p) for p in sprites.PATTERNS}
  found |= {(n,): ("number", n) for n in NUMBERS}
  found |= {(a,): ("article", a) for a in ARTICLES}
  return found


def _chunks(caption: str) -> list[tuple[str, str]]:
  """(kind, meaning): the longest known phrase at each place; "verb", "word" or "unknown" else."""
  words = re.findall(r"<?\w[\w'-]*>?", caption.lower())
  longest = max(map(len, _phrases()))
  chunks, i = [], 0
  while i < len(words):
    for length in range(longest, 0, -1):
      if found := _phrases().get(tuple(words[i : i + length])):
        chunks.append(found)
        i += length
        break
    else:
      kind = "verb" if words[i] in VERBS else "word" if words[i] in FUNCTION_WORDS else "unknown"
      chunks.append((kind, words[i]))
      i += 1
  return chunks


def read(caption: str) -> Reading:
  """Reads the content of a caption.

  A relation or a place is said of the noun before it ("a cat is above a dog"), but where a verb and
  a noun phrase follow, or nothing goes before, of that one ("above a dog is a cat", "on the left
  there is a cat"). What is left unfinished ("a cat above") or said twice and differently ("a red
  blue cat") is unknown.
  """
  reading = Reading([], [], [], [])
  chunks = _chunks(caption)
  subject = None  # of which a relation would be said
  relation = None  # waits for its second noun
  turned: list[
    tuple[str, int | None]
  ] = []  # (relation, of what) or (place, None), said of the next noun
  adjectives: dict[str, str] = {}
  count, definite = None, False
  for i, (kind, meaning) in enumerate(chunks):
    if kind == "article":
      count, definite = ARTICLES[meaning], meaning == "the"
    elif kind == "number":
      count = NUMBERS[meaning]
    elif kind in ADJECTIVES:
      _note(reading, adjectives, kind, meaning)
      if not _belongs_to_noun(chunks, i) and subject is not None:  # "the cat is big and red"
        _describe(reading, subject, adjectives)
        adjectives = {}
    elif kind == "noun":
      here = _resolve(reading, meaning, adjectives.get("color")) if definite else None
      if here is None:
        reading.mentions.append(Mention(meaning, count))
        here = len(reading.mentions) - 1
      _describe(reading, here, adjectives)
      adjectives, count, definite = {}, None, False
      if relation is not None:
        if subject is None or _turns(chunks, i):
          turned.append((relation, here))
        else:
          reading.relations.append((subject, relation, here))
        relation = None
      else:
        for what, other in turned:
          if other is None:
            reading.places.append((here, what))
          else:
            reading.relations.append((here, what, other))
        turned = []
        subject = here
    elif kind == "relation":
      reading.unknown += [relation] if relation else []
      relation = meaning
    elif kind == "place":
      if subject is None or _turns(chunks, i):
        turned.append((meaning, None))
      else:
        reading.places.append((subject, meaning))
    elif kind == "unknown":
      reading.unknown.append(meaning)
  reading.unknown += [relation] if relation else []
  reading.unknown += [what for what, _ in turned] + list(adjectives.values())
  return reading


def _note(reading: Reading, known: dict[str, str], kind: str, value: str) -> None:
  """Adds to what is known, unless it says otherwise."""
  if known.setdefault(kind, value) != value:
    reading.unknown.append(value)


def _describe(reading: Reading, position: int, adjectives: dict[str, str]) -> None:
  mention = reading.mentions[position]
  known = {k: v for k in ADJECTIVES if (v := getattr(mention, k))}
  for kind, value in adjectives.items():
    _note(reading, known, kind, value)
  for kind, value in known.items():
    setattr(mention, kind, value)


def _belongs_to_noun(chunks, i) -> bool:
  """Whether the adjective at i is followed by others and then by a noun."""
  rest = itertools.dropwhile(lambda c: c[0] in ADJECTIVES, chunks[i:])
  return next(rest, ("end", ""))[0] == "noun"


def _turns(chunks, i) -> bool:
  """Whether behind i comes "is a …" or "there is a …"; of "there is also a …" nothing is said."""
  verbs = list(itertools.takewhile(lambda c: c[0] == "verb", chunks[i + 1 :]))
  following = chunks[i + 1 + len(verbs) :][:1]
  return bool(verbs) and bool(following) and following[0][0] in ("article", "number")


def _resolve(reading: Reading, noun: str, color: str | None) -> int | None:
  """The earlier mention that "the …" means; a color must not contradict."""
  for i, earlier in enumerate(reading.mentions):
    if earlier.noun == noun and (color is None or earlier.color in (None, color)):
      return i
  return None


def _color_is(color: str, shown: composition.Object) -> bool:
  return color == shown.color or (not shown.color and color in sprites.natural_colors(shown.name))


def _attributes(mention: Mention, thing: tuple[composition.Object, ...]) -> dict[str, bool]:
  """Whether what is said of a thing is so."""
  claims = {}
  if mention.count is not None:
    claims["count"] = mention.count == len(thing)
  if mention.size is not None:
    claims["size"] = mention.size == thing[0].size
  if mention.color is not None:
    claims["color"] = _color_is(mention.color, thing[0])
  if mention.pattern is not None:
    claims["pattern"] = False  # that is of backgrounds
  return claims


def _assign(mentions: dict[int, Mention], things) -> dict[int, tuple[composition.Object, ...]]:
  """Mention → a thing of that noun, each thing once, so that the most of what is said is right."""
  found = {}
  for noun in {m.noun for m in mentions.values()}:
    said = [i for i, m in mentions.items() if m.noun == noun][:4]
    there = [t for t in things if t[0].name == noun]
    size = min(len(said), len(there))
    ways = (
      dict(zip(some, thing))
      for some in itertools.combinations(said, size)
      for thing in itertools.permutations(there, size)
    )
    found |= max(
      ways,
      key=lambda way: sum(
        sum(_attributes(mentions[i], thing).values()) for i, thing in way.items()
      ),
    )
  return found


def compare(caption: str, scene: composition.Scene) -> Counter:
  """Counts of what a caption says of a scene, and of what is right in it.

  Returns: `things` (in the scene) and `named` of them; `mentions` and `invented` of them, which no
    thing of the scene answers to; for KIND in count, size, color, background, relation, place:
    `KIND` (times said of what is there) and `KIND_right`; `unknown` words; `exact`, 1 where all
    things are named, nothing is invented, wrong or unknown. A relation with something invented
    counts as wrong.
  """
  reading, things = read(caption), scene.things()
  counts = Counter(things=len(things), unknown=len(reading.unknown))
  mentions = {i: m for i, m in enumerate(reading.mentions) if m.noun != "background"}
  who = _assign(mentions, things)
  counts.update(mentions=len(mentions), named=len(who), invented=len(mentions) - len(who))

  def claim(kind, right):
    counts.update({kind: 1, f"{kind}_right": int(right)})

  for i, thing in who.items():
    for kind, right in _attributes(mentions[i], thing).items():
      claim(kind, right)
  for ground in (m for m in reading.mentions if m.noun == "background"):
    for said, true in zip((ground.color, ground.pattern), scene.background):
      if said is not None:
        claim("background", said == true)
  for i, relation, j in reading.relations:
    claim(
      "relation",
      i in who
      and j in who
      and i != j
      and all(composition.holds(relation, a, b) for a in who[i] for b in who[j]),
    )
  for i, place in reading.places:
    claim("place", i in who and all(composition.is_at(place, o) for o in who[i]))
  wrong = any(counts[k] != counts[f"{k}_right"] for k in (*KINDS, "pattern"))
  counts["exact"] = int(
    len(who) == len(things) and not (counts["invented"] or counts["unknown"] or wrong)
  )
  return counts


KINDS = ("count", "size", "color", "background", "relation", "place")


def measures(counts: Iterable[Counter]) -> dict[str, float]:
  """Percentages over captions, from their `compare`.

  `objects_right`: things named, of those in the scenes. `invented`: mentions that are of nothing.
  `attributes_right`: of counts, sizes, colors and backgrounds that are told; `colors_right` and
  `counts_right` alone; `relations_right`: of relations and places. `exact`: captions wholly right.
  0 where nothing of a kind is told.
  """
  counts = list(counts)
  total = sum(counts, Counter())

  def right(*kinds):
    said = sum(total[k] for k in kinds)
    return 100.0 * sum(total[f"{k}_right"] for k in kinds) / max(said, 1)

  return {
    "objects_right": 100.0 * total["named"] / max(total["things"], 1),
    "invented": 100.0 * total["invented"] / max(total["mentions"], 1),
    "attributes_right": right("count", "size", "color", "background"),
    "colors_right": right("color"),
    "counts_right": right("count"),
    "relations_right": right("relation", "place"),
    "exact": 100.0 * total["exact"] / max(len(counts), 1),
  }
