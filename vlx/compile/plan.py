"""A run on devices that are not here, of data that is not here: what `vlx.train` would compile, as shapes."""

import dataclasses
import functools
import io
from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image

from vlx.data import batches
from vlx.data.transforms import preprocess
from vlx.core.errors import UserError
from vlx.core import partition
from vlx.train.run import Run


class _AnyText:
  """Stands for a tokenizer: ids of the right length, whatever the text."""

  def encode(self, text: str, length: int, *_):
    return np.zeros(length, np.int32), np.ones(length, bool)


def _blank_record(height: int, width: int) -> preprocess.Example:
  """What sources give, with nothing on it."""
  png = io.BytesIO()
  Image.new("RGBA", (width, height)).save(png, "PNG")
  return {"image": png.getvalue(), "caption": "a", "keywords": ("a",), "label": 0}


@dataclasses.dataclass(frozen=True)
class Plan(Run):
  """Needs no folder, data or tokenizer: a batch's shapes are those of blank pictures, preprocessed."""

  devices: Sequence[jax.Device] = ()

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    return partition.make_mesh(self.config.mesh, self.devices)

  def some_rows(self) -> dict[str, np.ndarray]:
    """Two rows, from pictures of different sizes.

    Raises:
      UserError: where the preprocessing leaves them different, or needs what a blank record has not.
    """
    ops = preprocess.parse(self.config.data.preprocess, _AnyText())
    examples = batches.Examples([_blank_record(600, 800), _blank_record(700, 600)], ops)
    try:
      return batches.Batches(examples, 2, self.config.seed)[0]
    except KeyError as e:
      raise UserError(f"data.preprocess reads {e}, which blank data has not") from e
    except ValueError as e:
      raise UserError(f"data.preprocess leaves shapes that depend on the data ({e}); resize or crop") from e
