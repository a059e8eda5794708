"""What every part does: rows of figures, printed and written as they come, and times of what
runs on the device.
"""

import datetime
import json
import os
import pathlib
import statistics
import time
import traceback
from collections.abc import Callable

import jax
from absl import flags

TINY = flags.DEFINE_bool(
  "tiny", False, "Sizes that run anywhere in seconds: whether the part works at all."
)


class Rows:
  """Rows of a part, in `$OUT/PART.json` (results/gpu without it) from the first on: a part cut
  off keeps them.
  """

  def __init__(self, part: str):
    self._path = pathlib.Path(os.environ.get("OUT", "results/gpu")) / f"{part}.json"
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._found = {
      "part": part,
      "device": jax.devices()[0].device_kind,
      "jax": jax.__version__,
      "date": datetime.date.today().isoformat(),
      "rows": [],
    }

  def add(self, **row) -> None:
    self._found["rows"].append(row)
    self._path.write_text(json.dumps(self._found, indent=1))
    print(
      "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()),
      flush=True,
    )


def milliseconds(run: Callable[[], object], *, calls: int = 10, repeats: int = 5) -> float:
  """Of a call that has run before: `calls` in a row, the median of `repeats`."""
  jax.block_until_ready(run())
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready([run() for _ in range(calls)][-1])
    times.append((time.perf_counter() - start) / calls)
  return 1000 * statistics.median(times)


def attempt(name: str, run: Callable[[], float]) -> float | str:
  """What `run` gives, or the last line of its error: one side that fails does not end the table."""
  try:
    return run()
  except Exception as e:
    traceback.print_exc(limit=-2)
    return f"{name}: {type(e).__name__} {(str(e).splitlines() or [''])[0][:160]}"
