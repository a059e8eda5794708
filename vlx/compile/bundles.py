"""Static figures of TPU kernels: what the compiler's final VLIW bundles hold. One bundle is one
cycle.

Read from libtpu's dump (`DUMP_FLAGS`), where `*-final_hlo-static-per-bundle-utilization.txt` has a
line for every bundle and a column for every unit.
"""

import dataclasses
import pathlib
import re

DUMP_FLAGS = "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true"
# Columns of the file.
MATRIX, VECTOR, SPILL = 0, 2, 8


@dataclasses.dataclass(frozen=True)
class Bundles:
  """Counts of one kernel's body.

  Attributes:
    total: all bundles, control and prologue included.
    hot: from the first to the last that uses a matrix unit; the rest are of `hot`.
    matrix: share of the matrix units' slots that are used.
    vector: share of the vector units' slots that are used.
    spills: vector registers stored for want of room.
  """

  total: int
  hot: int
  matrix: float
  vector: float
  spills: int


def read(path: pathlib.Path) -> Bundles:
  """The figures of one utilization file."""
  capacity, rows, in_table = [], [], False
  for line in path.read_text().splitlines():
    if line.startswith("== UTIL"):
      in_table = True
      continue
    fields = line.split()
    if not fields or not all(f.isdigit() for f in fields):
      continue
    if in_table:
      rows.append([int(f) for f in fields])
    else:
      capacity = [int(f) for f in fields]
  used = [i for i, row in enumerate(rows) if row[MATRIX]]
  hot = rows[used[0] : used[-1] + 1] if used else []
  share = lambda unit: sum(r[unit] for r in hot) / (capacity[unit] * len(hot)) if hot else 0.0
  return Bundles(len(rows), len(hot), share(MATRIX), share(VECTOR), sum(r[SPILL] for r in hot))


def of_kernels(dump: pathlib.Path, names) -> dict[str, Bundles]:
  """The figures of the kernels of these (instruction) names that the dump holds."""
  files = {}
  for path in dump.glob("*-final_hlo-static-per-bundle-utilization.txt"):
    match = re.fullmatch(r"\d+-(.*)-\d+-final_hlo-static-per-bundle-utilization\.txt", path.name)
    files[match[1]] = path
  return {name: read(files[name]) for name in names if name in files}
