"""How well pictures fit their texts, by the judgement of a CLIP run."""

import io
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from PIL import Image

from vlx.data import preprocess
from vlx.errors import UserError
from vlx.train import checkpoint, partition
from vlx.train.run import open_run

# Pictures `[N, H, W, 3]` in [-1, 1] and as many texts → their cosines `[N]`.
Judge = Callable[[np.ndarray, Sequence[str]], np.ndarray]


def open_judge(workdir: str, batch_size: int = 64) -> Judge:
  """The CLIP of a run's folder; pictures go through the preprocessing of its retrieval evaluator.

  Raises:
    UserError: where the folder holds no such run.
  """
  run = open_run(workdir)
  if "retrieval" not in run.config.evaluators:
    raise UserError(f"{workdir} is no CLIP run: its config has no evaluators.retrieval")
  section = run.config.evaluators.retrieval
  ops = preprocess.parse(section.preprocess, run.tokenizer)
  variables = checkpoint.restore_variables(run.workdir, partition.replicated(run.mesh))

  @jax.jit
  def cosines(variables, image, text, text_mask):
    pairs = (
        run.system.encode_image(variables, image), run.system.encode_text(variables, text, text_mask)
    )
    image, text = (x / jax.numpy.linalg.norm(x, axis=-1, keepdims=True) for x in pairs)
    return (image * text).sum(axis=-1)

  def judge(images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    found = []
    for first in range(0, len(images), batch_size):
      rows = np.minimum(first + np.arange(batch_size), len(images) - 1)
      inputs = np.stack([_prepared(ops, images[i]) for i in rows])
      found.append(cosines(
          variables, inputs, *run.tokenizer.encode_batch([texts[i] for i in rows], section.text_length)
      ))
    return np.concatenate(found)[: len(images)]

  return judge


def _prepared(ops: preprocess.Preprocess, image: np.ndarray) -> np.ndarray:
  """As the ops would read it from a file."""
  out = io.BytesIO()
  Image.fromarray(to_uint8(image)).save(out, "png")
  return ops.finish(ops.prepare({"image": out.getvalue(), "caption": ""}), None)["image"]


def to_uint8(image: np.ndarray) -> np.ndarray:
  """[-1, 1] → 0 … 255."""
  return np.round(np.clip((image + 1) / 2, 0, 1) * 255).astype(np.uint8)
