"""Damaged files of strangers: each reader gives what was written, visibly other data, or one clear error.

`harness` says how that is judged. `python -m tests.fuzz.harness NAME 1 NUMBER` shows one damage again.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.fuzz import harness
from tests.fuzz.readers import READERS

FEW, MANY = 30, 2000


def assert_only_known(found, name, count):
  print(f"{name}: {found['counts']}, the slowest took {found['slowest'][0]:.2f} s")
  assert not found["faults"], "\n".join(found["faults"][:20])
  assert sum(found["counts"].values()) == count
  assert found["counts"].keys() <= {harness.EQUAL, harness.OTHER, harness.ERROR}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_a_little_damage(name, tmp_path, monkeypatch):
  monkeypatch.setenv("VLX_CACHE", str(tmp_path / "cache"))
  (tmp_path / "x").mkdir()
  # A checkpoint of vlx's own takes a hundred times as long as the others.
  count = 3 if "run" in name or name == "converted" else FEW
  assert_only_known(harness.run(READERS[name], tmp_path / "x", count), name, count)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_much_damage(name, tmp_path):
  """In a process of its own: what takes its memory, or ends it, is a fault too."""
  done = subprocess.run(
    [sys.executable, "-m", "tests.fuzz.harness", name, str(MANY)],
    env={**os.environ, "VLX_CACHE": str(tmp_path)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert_only_known(json.loads(done.stdout.splitlines()[-1]), name, MANY)


def test_faults_are_seen(tmp_path):
  """The judge: an exception, other numbers, a line that is several, a hang are no known outcomes."""

  def read(folder):
    data = (folder / "x").read_bytes()
    if len(data) < 32:
      raise KeyError("x")
    if len(data) > 32:
      raise harness.UserError("one\ntwo")
    return harness.Content("x", {"a": data[:8]})

  reader = harness.Reader(
    lambda folder: (folder / "x").write_bytes(bytes(range(32))),
    lambda folder: harness.Content(read(folder).form, {"a": read(folder).values["a"][::-1]}),
    {"x": (harness.mutations.of_bytes,)},
  )
  found = harness.run(reader, tmp_path, 200)
  assert {"other error", "long error", "silently other numbers", "equal"} == found["counts"].keys()
  assert len(found["faults"]) == 200 - found["counts"]["equal"]


STUCK = """
import pathlib, sys
from tests.fuzz import harness
harness.END = 1
nested = ()
for _ in range(100):
  nested = (nested, nested)
damaged = lambda folder: hash(nested if (folder / "x").read_bytes() != b"xxxx" else "")
reader = harness.Reader(
  lambda folder: (folder / "x").write_bytes(b"xxxx"), damaged, {"x": (harness.mutations.of_bytes,)}
)
harness.run(reader, pathlib.Path(sys.argv[1]), 10)
"""


def test_what_hears_no_signal_is_ended(tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", STUCK, str(tmp_path)], capture_output=True, text=True, timeout=60
  )
  assert done.returncode == 1 and done.stderr.startswith("0 ") and "Timeout" in done.stderr
