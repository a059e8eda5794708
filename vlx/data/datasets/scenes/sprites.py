"""The material of scenes: sprites, their colors, backgrounds.

A sprite is Noto's or Twemoji's image of a noun, cut to its opaque part. A color is laid on by its
luminance, dark to light, so that a blue banana is a banana and blue all over. The nouns are emoji
of five groups of Unicode whose name is one word of letters, which the two vendors both draw, chosen
by hand: what has one shape at 20 pixels and can be counted (no weather, no clocks, no faces, no
masses).
"""

import functools
import io

import numpy as np
from PIL import Image

from vlx.data.datasets import emoji

NOUNS = {
  "animals_nature": """
        ant bat bear beaver beetle bird bison boar butterfly cactus camel cat chicken cow crab crocodile
        deer dog dolphin dove dragon duck eagle elephant feather fish flamingo fox frog giraffe goat
        gorilla hedgehog honeybee horse kangaroo koala leopard lion lizard llama lobster mammoth monkey
        mouse mushroom octopus otter owl ox oyster panda parrot peacock penguin pig rabbit raccoon rat
        rhinoceros rooster rose scorpion seal shamrock shark shrimp sloth snail snake spider squid
        sunflower swan tiger tulip turkey turtle unicorn whale wolf zebra""",
  "food_drink": """
        avocado bagel banana burrito candy carrot chestnut coconut cookie croissant cucumber cupcake
        doughnut egg eggplant hamburger lemon lollipop mango melon olive onion peach pear pie pineapple
        pizza potato pretzel sandwich shortcake spoon strawberry taco tangerine teapot tomato waffle
        watermelon""",
  "travel_places": """
        airplane ambulance anchor automobile bicycle bus canoe castle church cloud compass ferry fountain
        helicopter hotel house hut locomotive motorcycle mountain parachute rock rocket sailboat satellite
        ship skateboard snowman speedboat star taxi tent tractor train tram umbrella volcano watch""",
  "activities": """
        balloon baseball basketball joystick kite ribbon sled ticket trophy volleyball""",
  "objects": """
        accordion axe backpack banjo basket battery bed bell bomb briefcase broom bucket calendar camera
        candle chair clipboard coat coin crown door dress drum envelope flashlight gear guitar hammer
        handbag key ladder laptop lipstick magnet megaphone microphone microscope mirror necktie newspaper
        paintbrush pen pencil postbox printer radio razor ring saxophone scarf screwdriver scroll shield
        syringe telephone telescope television toolbox toothbrush trumpet violin window wrench""",
}
ALL_NOUNS = tuple(sorted(" ".join(NOUNS.values()).split()))
STYLES = tuple(emoji.VENDORS)

COLORS = {
  "red": (214, 32, 38),
  "orange": (247, 137, 24),
  "yellow": (250, 216, 40),
  "green": (46, 158, 64),
  "blue": (38, 92, 222),
  "purple": (138, 58, 186),
  "pink": (250, 128, 190),
  "brown": (106, 60, 26),
}
BACKGROUNDS = {
  "white": (252, 252, 252),
  "gray": (196, 198, 202),
  "yellow": (255, 243, 184),
  "green": (200, 234, 200),
  "blue": (196, 222, 250),
  "pink": (252, 214, 228),
}
PATTERNS = ("plain", "striped", "dotted", "checkered")

# Mean distance of RGB values (0-255) below which a sprite as it is drawn passes for one of that
# color.
LOOKS_ALIKE = 60.0


@functools.cache
def sequences() -> dict[str, str]:
  """Noun → its emoji."""
  nouns = set(ALL_NOUNS)
  return {name: s for s, name in emoji.captions().items() if name in nouns and len(s) == 1}


@functools.cache
def sprites() -> dict[tuple[str, str], Image.Image]:
  """(style, noun) → RGBA, cut to what is not transparent."""
  nouns = {sequence: noun for noun, sequence in sequences().items()}
  found = {}
  for style, sequence, png in emoji.vendor_images():
    if sequence in nouns:
      image = Image.open(io.BytesIO(png)).convert("RGBA")
      found[style, nouns[sequence]] = image.crop(image.getchannel("A").getbbox())
  return found


def aspect(style: str, noun: str) -> float:
  """Width over height of a sprite."""
  width, height = sprites()[style, noun].size
  return width / height


@functools.cache
def _brightness(style: str, noun: str) -> tuple[float, float, float]:
  """The luminance, 0-255, of a sprite's darkest, middling and lightest parts.

  The outer ones stand well apart, else what little shade a flat sprite has would be blown up.
  """
  image = sprites()[style, noun]
  luminance = np.asarray(image.convert("L"))[np.asarray(image)[..., 3] > 127]
  low, high = np.percentile(luminance, (5, 95))
  middle = luminance.mean()
  return float(min(low, middle - 60)), float(middle), float(max(high, middle + 60))


@functools.cache
def _ramp(style: str, noun: str, color: str) -> tuple[list[int], ...]:
  """For red, green, blue: the value at each luminance."""
  return tuple(
    np.interp(np.arange(256), _brightness(style, noun), (0.4 * c, c, c + 0.4 * (255 - c)))
    .round()
    .astype(int)
    .tolist()
    for c in COLORS[color]
  )


def sprite(style: str, noun: str, color: str) -> Image.Image:
  """RGBA, in a color ("": as it is drawn)."""
  image = sprites()[style, noun]
  if not color:
    return image
  luminance = image.convert("L")
  bands = [luminance.point(values) for values in _ramp(style, noun, color)]
  return Image.merge("RGBA", [*bands, image.getchannel("A")])


@functools.cache
def natural_colors(noun: str) -> frozenset[str]:
  """Colors that the noun as it is drawn passes for, in either style: a tomato is red."""

  def distance(style, color):
    plain, painted = (np.asarray(sprite(style, noun, c), np.float32)[::3, ::3] for c in ("", color))
    return np.linalg.norm(plain - painted, axis=-1)[plain[..., 3] > 127].mean()

  return frozenset(c for c in COLORS if min(distance(s, c) for s in STYLES) < LOOKS_ALIKE)


@functools.lru_cache(maxsize=64)
def background(color: str, pattern: str, size: int) -> Image.Image:
  """RGB: a light color; stripes, dots and squares are a darker shade of it, eight to a side."""
  # Three times as fine, then the mean: no jagged edges.
  x, y = np.meshgrid(*[(np.arange(3 * size) + 0.5) / (3 * size) * 8] * 2)
  dark = {
    "plain": np.zeros(x.shape, bool),
    "striped": (x + y) % 1.0 < 0.5,
    "dotted": (x % 1.0 - 0.5) ** 2 + (y % 1.0 - 0.5) ** 2 < 0.06,
    "checkered": (x.astype(int) + y.astype(int)) % 2 == 1,
  }[pattern]
  shade = np.where(dark, 0.9, 1.0).reshape(size, 3, size, 3).mean(axis=(1, 3))
  return Image.fromarray((shade[..., None] * BACKGROUNDS[color]).round().astype(np.uint8))


def paint(objects, ground: tuple[str, str], size: int) -> bytes:
  """PNG bytes of sprites on a background.

  Args:
    objects: with `name`, `color`, `style`, `box`; each lies inside of its box.
    ground: (color, pattern).
    size: of the image's side.
  """
  scene = background(*ground, size).copy()
  for thing in objects:
    x1, y1, x2, y2 = (round(size * side, 6) for side in thing.box)
    left, top = int(np.ceil(x1)), int(np.ceil(y1))
    width, height = max(1, int(x2) - left), max(1, int(y2) - top)
    image = sprite(thing.style, thing.name, thing.color).resize(
      (width, height), Image.Resampling.LANCZOS
    )
    scene.paste(image, (left, top), image)
  out = io.BytesIO()
  scene.save(out, "png", compress_level=1)
  return out.getvalue()
