"""What evaluators find."""

from collections.abc import Mapping
from typing import NamedTuple

from matplotlib.figure import Figure


class Results(NamedTuple):
  """Numbers and sheets."""

  measures: Mapping[str, float]  # "split/measure" → number
  figures: Mapping[str, Figure] = {}  # name → to look at
