"""Captions of a picture from a captioner's run, and where it looked at each word."""

import functools
import pathlib

import jax
import numpy as np
from PIL import Image

from vlx.data.transforms import preprocess
from vlx.core.errors import UserError
from vlx.evaluate.report import sheets as pictures
from vlx.core import checkpoint
from vlx.core import partition
from vlx.train.run import open_run


def describe(
    workdir: str, image: str, *, beam_size: int = 20, max_length: int = 30, length_penalty: float = 0.0,
    count: int = 5,
) -> tuple[list[tuple[str, float]], pathlib.Path | None]:
  """The likeliest captions of a picture and their log-probabilities (by the length where that is asked for).

  A system with attention also writes `WORKDIR/samples/IMAGE_words.png`, and its path is returned beside them:
  the picture once for each word of the best caption, attention laid over it, above its expectation, below its
  likeliest place.

  Args:
    workdir: of a captioner's run.
    image: file of the picture.
    beam_size: sequences followed by beam search.
    max_length: words of the longest caption, with its end.
    length_penalty: α of `vlx.inference.beam_search`.
    count: captions to return.

  Raises:
    UserError: where the folder has no captioner with a checkpoint, or the picture cannot be read.
  """
  run = open_run(workdir)
  if not hasattr(run.system, "caption"):
    raise UserError(f"{workdir} holds a {type(run.system).__name__}, which makes no captions")
  encoded, ops = _read(image), run.config.data.picture
  pixels = _prepared(encoded, ops)[None]
  variables = checkpoint.restore_variables(run.workdir, partition.replicated(run.mesh))
  with jax.set_mesh(run.mesh):
    search = functools.partial(
        run.system.caption, beam_size=beam_size, max_length=max_length, length_penalty=length_penalty
    )
    ids, scores = (np.asarray(x)[0] for x in jax.jit(search)(variables, pixels))
    sheet = None
    if hasattr(run.system, "attend"):
      text = np.pad(ids[:1], ((0, 0), (1, 0)), constant_values=run.system.start_id)
      said = list(ids[0]).index(run.system.end_id) if run.system.end_id in ids[0] else len(ids[0])
      mask = np.arange(text.shape[1])[None] <= said
      maps = np.asarray(jax.jit(run.system.attend)(variables, pixels, text, mask))[0, 1 : said + 1]
      sheet = run.workdir / "samples" / f"{pathlib.Path(image).stem}_words.png"
      shown = _prepared(encoded, pictures.before_normalize(ops))
      pictures.words_sheet(sheet, shown, [run.tokenizer.decode([i]) for i in ids[0, :said]], maps)
  captions = [(run.tokenizer.decode(i), float(s)) for i, s in zip(ids, scores) if np.isfinite(s)]
  return captions[:count], sheet


def _read(image: str) -> bytes:
  try:
    with Image.open(image):
      return pathlib.Path(image).read_bytes()
  except OSError as e:
    raise UserError(f"cannot read the picture {image}: {e}") from e


def _prepared(encoded: bytes, ops: str) -> np.ndarray:
  parsed = preprocess.parse(ops)
  try:
    return parsed.finish(parsed.prepare({"image": encoded}), None)["image"]
  except preprocess.BadRecord as e:
    raise UserError(f"the picture cannot be used: {e}") from e
