"""Images that people give, in any form, and those that models make."""

import io
import pathlib

import numpy as np
from PIL import Image

from vlx.core.errors import UserError
from vlx.data.records import BadRecord
from vlx.data.transforms import preprocess

AnyImage = Image.Image | np.ndarray | bytes | str | pathlib.Path


def to_uint8(images: np.ndarray) -> np.ndarray:
  """Values in [-1, 1] as 0 … 255."""
  return np.round(np.clip((np.asarray(images, np.float32) + 1) / 2, 0, 1) * 255).astype(np.uint8)


def to_png(image: np.ndarray) -> bytes:
  """An image, uint8 or f32 in [-1, 1], encoded."""
  out = io.BytesIO()
  Image.fromarray(image if image.dtype == np.uint8 else to_uint8(image)).save(out, "png")
  return out.getvalue()


def encoded(image: AnyImage) -> bytes:
  """An image in whatever form as an encoded one.

  Raises:
    UserError: for a file that cannot be read.
  """
  match image:
    case bytes():
      return image
    case np.ndarray():
      return to_png(image)
    case Image.Image():
      out = io.BytesIO()
      image.save(out, "png")
      return out.getvalue()
  try:
    return pathlib.Path(image).expanduser().read_bytes()
  except OSError as e:
    raise UserError(f"cannot read the image {image}: {e.strerror}") from e


def prepared(ops: preprocess.Preprocess, image: AnyImage) -> np.ndarray:
  """An image as preprocessing makes it.

  Raises:
    UserError: for what is no image, or one that it does not take.
  """
  try:
    return ops.finish(ops.prepare({"image": encoded(image)}), None)["image"]
  except BadRecord as e:
    named = f" {image}" if not isinstance(image, (bytes, np.ndarray, Image.Image)) else ""
    raise UserError(f"the image{named} cannot be used: {e}") from e
