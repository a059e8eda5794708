"""The formats of public checkpoints, a module each: `open_X(path)` gives the tensors that lie
there.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class TensorFile(NamedTuple):
  """Named tensors on disk, of one file or of many that belong together."""

  shapes: Mapping[str, tuple[int, ...]]
  fetch: Callable[[str], np.ndarray]  # reads one
  metadata: Mapping[str, Any] = {}
