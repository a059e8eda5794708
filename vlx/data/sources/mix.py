"""Several sources as one."""

import itertools
from collections.abc import Callable

import numpy as np

from vlx.core.errors import UserError
from vlx.data.records import Source


class MixSource:
  """Several sources, one after another; `epoch_order` samples them by weight."""

  def __init__(self, specs: str, split: str, opened: Callable[[str, str], Source]):
    self.parts, self.weights = [], []
    for part in specs.split(";"):
      weight, star, spec = part.strip().partition("*")
      try:
        self.weights.append(float(weight))
      except ValueError:
        star = ""
      if not star or not self.weights[-1] > 0:
        raise UserError(
          f"a mix is WEIGHT*KIND:PATH;WEIGHT*KIND:PATH…, weights above 0, not {specs!r}"
        )
      self.parts.append(opened(spec, split))
    self.starts = np.cumsum([0, *map(len, self.parts)])

  def _find(self, index):
    part = int(np.searchsorted(self.starts, index, side="right")) - 1
    return self.parts[part], int(index - self.starts[part])

  def __len__(self):
    return int(self.starts[-1])

  def __getitem__(self, index):
    part, own = self._find(index)
    return part[own]

  def name(self, index):
    part, own = self._find(index)
    return part.name(own)

  def texts(self, fields):
    return itertools.chain.from_iterable(part.texts(fields) for part in self.parts)
