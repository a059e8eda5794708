"""Pictures of a text, by a run that makes them; the best by a CLIP's judgement first."""

import pathlib
import re

import jax
import numpy as np
from PIL import Image

from vlx.core.errors import UserError
from vlx.evaluate import reference_models as judges
from vlx.evaluate.report import sheets as pictures
from vlx.evaluate.tasks.generation import sample_images
from vlx.core import checkpoint
from vlx.core import partition
from vlx.train.run import Run, open_run

COLUMNS = 8


def generate_images(
    workdir: str, prompt: str, num: int, *, rerank: str = "", image: str = "", keep_rows: int = 0,
    seed: int = 0, temperature: float = 1.0, top_k: int = 0, guidance_scale: float = 1.0,
) -> tuple[pathlib.Path, np.ndarray | None]:
  """Writes a grid of pictures to the run's samples/.

  Args:
    workdir: of a run that makes pictures of texts.
    prompt: what to draw.
    num: how many pictures.
    rerank: a CLIP run or a public CLIP; the pictures stand in the order of its cosines then.
    image: a picture whose upper part is kept.
    keep_rows: of `image`, in codes; 0: half.
    seed: of the first picture; the others' follow.
    temperature: of the codes' distribution.
    top_k: the likeliest codes to draw from; 0: all.
    guidance_scale: 1: none.

  Returns:
    (the file, the cosines in the order of the pictures or None).

  Raises:
    UserError: for a run of another kind, an empty prompt or one too long, a picture that cannot be read, or a
      tokenizer that the run was not trained with.
  """
  run = open_run(workdir)
  if not hasattr(run.system, "generate") or not hasattr(run.system, "decode_image"):
    raise UserError(f"{workdir} holds a {type(run.system).__name__}, which makes no pictures of texts")
  if num < 1:
    raise UserError(f"--num is at least 1, not {num}")
  text, text_mask = encode_prompt(run, prompt)
  judge = judges.open_clip(rerank, run.mesh) if rerank else None
  variables = checkpoint.restore_variables(run.workdir, partition.replicated(run.mesh))
  check_variables(run, variables)
  prefix = upper_part(run, variables, image, keep_rows) if image else None
  repeat = lambda x: np.repeat(x[None], num, axis=0)
  images = sample_images(
      run.system, variables, repeat(text), repeat(text_mask), seed + np.arange(num),
      None if prefix is None else repeat(prefix), temperature=temperature, top_k=top_k,
      guidance_scale=guidance_scale,
  )
  cosines = None
  if judge:
    with jax.set_mesh(run.mesh):
      cosines = judge.cosines([judges.with_picture({"caption": prompt}, image) for image in images])
    order = np.argsort(-cosines, kind="stable")
    images, cosines = images[order], cosines[order]
  name = re.sub(r"\W+", "_", prompt).strip("_")[:60] or "prompt"
  path = run.workdir / "samples" / f"{name}.png"
  rows = [images[i : i + COLUMNS] for i in range(0, num, COLUMNS)]
  pictures.grid(path, rows, prompt + (", best first" if judge else ""))
  return path, cosines


def check_variables(run: Run, variables) -> None:
  """Raises `UserError` where the tokenizer's folder holds another than the one that the run was trained with."""
  size, text = run.system.tokenizer.image_size, (1, run.config.model.context_length)
  shapes = jax.eval_shape(run.system.init, jax.random.key(0), dict(
      image=jax.ShapeDtypeStruct((1, size, size, 3), np.float32),
      text=jax.ShapeDtypeStruct(text, np.int32), text_mask=jax.ShapeDtypeStruct(text, np.bool_),
  ))
  described = lambda tree: jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)
  if described(shapes) != described(variables):
    raise UserError(
        f"{run.config.model.tokenizer} is a tokenizer of other sizes than the one {run.workdir} was trained with"
    )


def encode_prompt(run: Run, prompt: str) -> tuple[np.ndarray, np.ndarray]:
  """(ids, mask) of the run's context length."""
  if not prompt.strip():
    raise UserError("the prompt is empty")
  length = run.config.model.context_length
  _, mask = run.tokenizer.encode(prompt, length + 1)
  if mask.all():
    raise UserError(f"the prompt is too long: {run.workdir} reads {length} tokens, start and end among them")
  return run.tokenizer.encode(prompt, length)


def upper_part(run: Run, variables, path: str, keep_rows: int) -> np.ndarray:
  """The codes of a picture's first rows (§3.3 of DALL-E), half of them for 0."""
  rows, _ = run.system.tokenizer.grid
  if not 0 <= keep_rows < rows:
    raise UserError(f"--keep_rows is below {rows}, the rows of codes of a picture, not {keep_rows}")
  size = run.system.tokenizer.image_size
  try:
    with Image.open(path) as picture:
      pixels = np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
  except OSError as e:
    raise UserError(f"cannot read the picture {path}: {e}") from e
  ids = jax.jit(run.system.encode_image)(variables, pixels[None] / np.float32(127.5) - 1)
  return np.asarray(ids)[0, : keep_rows or rows // 2].ravel()
