"""The results of evaluators, and results.json, which keeps them beside their provenance."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from vlx.core import distributed, files
from vlx.core.errors import UserError
from vlx.core.provenance import provenance


class Results(NamedTuple):
  """Numbers and sheets."""

  measures: Mapping[str, float]  # "split/measure" → number
  figures: Mapping[str, Figure] = {}  # name → to look at


def write(path: pathlib.Path, measures: Mapping[str, float], **facts: Any) -> None:
  """Writes results.json: `measures`, the facts given, and the provenance of this process."""
  if distributed.is_first():
    found = facts | provenance() | {"measures": dict(sorted(measures.items()))}
    files.write(path, json.dumps(found, indent=1) + "\n")


def read(path: pathlib.Path) -> dict[str, Any]:
  """results.json; one written before 0.2.0 has `measures` alone.

  Raises:
    UserError: for a damaged one.
  """
  try:
    found = json.loads(path.read_bytes())
    found = found if "measures" in found else {"measures": found}
    if all(type(x) in (int, float) for x in found["measures"].values()):
      return found
  except (ValueError, TypeError, AttributeError, RecursionError):
    pass
  raise UserError(f"{path} is damaged; remove it, and evaluate again")
