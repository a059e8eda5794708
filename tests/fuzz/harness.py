"""Damages the input of a reader many times and tells what came of each: the same, visibly other data, or
one clear error. Nothing else may be.

  python -m tests.fuzz.harness NAME COUNT [FIRST]    one reader, in a process of its own with bounded
                                                     memory; prints the counts
"""

import collections
import faulthandler
import json
import pathlib
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tests.fuzz import mutations
from vlx.core.errors import UserError
from vlx.data.records import BadRecord

SECONDS = 5  # for one reading; most take milliseconds
# No signal is heard within one call of C, as of a hash that never ends: then the process ends, and
# stderr has its traceback behind the number of the damage.
END = 20
MEMORY = 1 << 30  # beyond what the process has before
EQUAL, OTHER, ERROR = "equal", "other data", "error"


class Content(NamedTuple):
  """What a reader gave, to be compared."""

  form: Any  # what one sees at once: names, shapes, types, texts
  values: Mapping[str, bytes] = {}  # numbers under them
  numbers: tuple[bytes, ...] = ()  # those in the files, where they are not as in `values`


class Reader(NamedTuple):
  """A reader of strangers' files.

  Attributes:
    make: writes the whole input to a folder.
    read: gives its content.
    damage: pattern of files → what may happen to them.
    silent: kinds of damage by which a file has other numbers under the same names, and is right.
    never: kinds that no field of the JSON may have: read as something else they are faults.
    checked: whether all its bytes have checksums, so that nothing else can be read.
  """

  make: Callable[[pathlib.Path], None]
  read: Callable[[pathlib.Path], Content]
  damage: Mapping[str, Sequence[Callable]]
  silent: frozenset[str] = frozenset(("content of another", "swapped", "another's", "twice"))
  never: frozenset[str] = frozenset()
  checked: bool = False


class Hang(BaseException):
  """A reading that takes too long."""


def _ring(*_):
  raise Hang


def run(reader: Reader, folder: pathlib.Path, count: int, first: int = 0) -> dict[str, Any]:
  """Counts of outcomes, and the faults among `count` readings.

  A fault is the number of the damage, file, kind and what came of it; equal numbers give equal damage.
  """
  reader.make(folder)
  whole = reader.read(folder)
  files = [
    (path, hows) for pattern, hows in reader.damage.items() for path in sorted(folder.glob(pattern))
  ]
  files = [(path, hows) for path, hows in files if path.is_file()]
  counts, faults, kinds = collections.Counter(), [], collections.Counter()
  slowest = (0.0, -1)
  before = signal.signal(signal.SIGALRM, _ring)
  try:
    for number in range(first, first + count):
      rng = np.random.default_rng([number, 18])
      path, hows = files[int(rng.integers(len(files)))]
      original = path.read_bytes()
      print(number, end=" ", file=sys.stderr, flush=True)
      kind, damaged = _damaged(hows[int(rng.integers(len(hows)))], original, rng)
      path.write_bytes(damaged)
      began = time.perf_counter()
      outcome, fault = _outcome(reader, folder, whole, path, original, damaged, kind)
      slowest = max(slowest, (time.perf_counter() - began, number))
      path.write_bytes(original)
      counts[outcome] += 1
      kinds[f"{outcome}: {kind}"] += 1
      if fault:
        faults.append(f"{number} {path.relative_to(folder)} ({kind}): {fault}")
  finally:
    signal.signal(signal.SIGALRM, before)
  return {"counts": dict(counts), "faults": faults, "kinds": dict(kinds), "slowest": slowest}


def _damaged(how, original: bytes, rng) -> tuple[str, bytes]:
  if how.__name__ == "of_json":
    return how(json.loads(original), rng)
  return how(original, rng)


def _outcome(reader, folder, whole, path, original, damaged, kind) -> tuple[str, str]:
  """(outcome, what is wrong about it or "")."""
  signal.alarm(SECONDS)
  faulthandler.dump_traceback_later(END, exit=True, file=sys.__stderr__)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      found = reader.read(folder)
  except (UserError, BadRecord) as e:
    message = str(e)
    if "MemoryError" in message:
      return "memory", message[:200]
    # A list of tensors that do not fit has a line for each.
    lines = message.split("\n")
    if any(not line.startswith("  ") for line in lines[1:]) or max(map(len, lines)) > 4100:
      return "long error", repr(message[:300])
    return ERROR, ""
  except Hang:
    return "hang", f"more than {SECONDS} s"
  except MemoryError:
    return "memory", traceback.format_exc(limit=-3)
  except Exception as e:
    return "other error", f"{type(e).__name__}: {str(e)[:200]}\n{traceback.format_exc(limit=-4)}"
  finally:
    signal.alarm(0)
    faulthandler.cancel_dump_traceback_later()
  if found[:2] == whole[:2]:
    return EQUAL, ""
  silent = found.form == whole.form
  if silent and (
    reader.checked or not _are_numbers(reader, folder, whole, path, original, damaged, kind)
  ):
    if reader.checked or not all(part in reader.silent for part in _parts(kind)):
      return "silently other numbers", str(_differing(found, whole))
  elif not silent and (reader.checked or all(part in reader.never for part in _parts(kind))):
    return "other than it says", str(_differing(found, whole))[:400]
  return OTHER, ""


def _are_numbers(reader, folder, whole, path, original, damaged, kind) -> bool:
  """Whether a file is read as it was once the bytes of its arrays are as they were: most formats have
  no checksum of them.
  """
  numbers = [*whole.numbers, *(n for n in whole.values.values() if len(n) >= 4)]
  if (back := _restored(numbers, original, damaged, kind)) is None:
    return False
  path.write_bytes(back)
  try:
    return reader.read(folder)[:2] == whole[:2]
  except UserError:
    return False


def _parts(kind: str) -> list[str]:
  return kind.split(": ")[-1].split("+")


def _differing(found: Content, whole: Content):
  if found.form != whole.form:
    a, b = repr(found.form), repr(whole.form)
    at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return a[max(0, at - 60) : at + 100], b[max(0, at - 60) : at + 100]
  return [name for name in whole.values if found.values.get(name) != whole.values[name]]


def _restored(numbers: Sequence[bytes], original: bytes, damaged: bytes, kind: str) -> bytes | None:
  """The damaged file with the bytes of its arrays as they were; None where lengths changed."""
  if not kind.startswith("zip"):
    return _with_numbers(numbers, original, damaged)
  before = dict(mutations.members(original))
  back = [
    (name, _with_numbers(numbers, before.get(name, data), data) or data)
    for name, data in mutations.members(damaged)
  ]
  return mutations.zipped(back)


def _with_numbers(numbers, original, damaged) -> bytes | None:
  if len(original) != len(damaged):
    return None
  back = bytearray(damaged)
  for data in numbers:
    at = original.find(data) if data else -1
    while at >= 0:
      back[at : at + len(data)] = data
      at = original.find(data, at + 1)
  return bytes(back)


def arrays(file, numbers: Sequence[bytes] = (), **more) -> Content:
  """All tensors of a `TensorFile`."""
  found = {name: np.asarray(file.fetch(name)) for name in file.shapes}
  form = {name: (file.shapes[name], x.shape, str(x.dtype)) for name, x in found.items()}
  return Content((form, more), {name: x.tobytes() for name, x in found.items()}, tuple(numbers))


def _bound_memory() -> None:
  with open("/proc/self/statm") as f:
    now = int(f.read().split()[0]) * resource.getpagesize()
  resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, resource.RLIM_INFINITY))


def main(name: str, count: str, first: str = "0") -> None:
  from tests.fuzz.readers import READERS

  reader = READERS[name]
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    (root / "before").mkdir()
    reader.make(root / "before")
    reader.read(root / "before")  # what is imported and compiled is in memory
    _bound_memory()
    (root / "x").mkdir()
    print(json.dumps(run(reader, root / "x", int(count), int(first))))


if __name__ == "__main__":
  main(*sys.argv[1:])
