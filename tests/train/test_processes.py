"""Several processes on this machine: the same training however many there are, and none that
hangs.
"""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from vlx.core.files import read_steps

FLAGS = [
  "--config=configs/clip.py:smoke",
  "--config.evaluators.retrieval.splits=('combo',)",
  "--config.evaluators.retrieval.gallery=('combo',)",
  "--config.steps=12",
  "--config.checkpoint.every=4",
  "--config.checkpoint.keep=2",
]
STEPS, ROWS = 12, 32


def start(processes, devices, workdir, **environment):
  """Runs vlx.train to its end; returns (exit code, what it printed)."""
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": ".",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    **{k: str(v) for k, v in environment.items()},
  }
  launcher = ["scripts/local.py", str(processes)] if processes > 1 else []
  done = subprocess.run(
    [sys.executable, *launcher, "tests/train/worker.py", *FLAGS, f"--workdir={workdir}"],
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )
  return done.returncode, done.stdout + done.stderr


def losses(workdir):
  lines = read_steps(workdir / "metrics.jsonl")
  assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
  return [line["train/loss"] for line in lines]


def ids(folder):
  """(step, row) → example id, the same whoever read it."""
  found = {}
  for path in folder.glob("ids.*.jsonl"):
    for step, rows, examples in map(json.loads, path.read_text().splitlines()):
      for row, example in zip(rows, examples):
        assert found.setdefault((step, row), example) == example, (step, row)
  return found


@pytest.mark.slow
def test_a_run_goes_on_with_other_processes_and_is_the_same(tmp_path):
  """2 processes of 2 devices, then 1 of 4, then 4 of 1; beside one that was never stopped."""
  record = {}
  for name in ("whole", "moved"):
    record[name] = tmp_path / f"{name}_ids"
    record[name].mkdir()
  code, out = start(1, 4, tmp_path / "whole", RECORD=record["whole"])
  assert code == 0, out
  for processes, devices, stop in ((2, 2, 3), (1, 4, 7), (4, 1, -1)):
    code, out = start(processes, devices, tmp_path / "moved", RECORD=record["moved"], STOP_AT=stop)
    assert code == 0, out
    assert (stop == -1) != ("the same command goes on from there" in out), out
  whole = ids(record["whole"])
  assert {k for k in whole if k[0] < STEPS} == {(s, r) for s in range(STEPS) for r in range(ROWS)}
  assert ids(record["moved"]) == whole
  np.testing.assert_allclose(losses(tmp_path / "moved"), losses(tmp_path / "whole"), rtol=1e-6)


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(tmp_path):
  for name, processes, devices in (("one", 1, 2), ("two", 2, 1)):
    code, out = start(processes, devices, tmp_path / name)
    assert code == 0, out
  np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-6)
  one, two = (
    json.loads((tmp_path / name / "results.json").read_text())["measures"]
    for name in ("one", "two")
  )
  assert two == pytest.approx(one)
  assert out.count("training for 12 steps") == 1  # the first process alone speaks


@pytest.mark.slow
def test_what_one_process_cannot_read_none_uses(tmp_path):
  code, out = start(2, 1, tmp_path)
  assert code == 0, out
  code, out = start(2, 1, tmp_path, UNREADABLE=12)
  assert code == 0 and "going on at step 8" in out, out
  assert (tmp_path / "checkpoints" / "damaged-12").is_dir()
  losses(tmp_path)  # each step once


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others_and_is_named(tmp_path):
  began = time.monotonic()
  code, out = start(2, 1, tmp_path, KILL_AT=5)
  assert code == 128 + 9
  assert "process 1 of 2 ended by SIGKILL; ending the others" in out
  assert time.monotonic() - began < 120  # the limit is a minute from the kill; the start is in it
  code, out = start(1, 1, tmp_path)
  assert code == 0 and "going on at step 4" in out, out


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_costs_nothing_but_time(tmp_path):
  code, out = start(1, 1, tmp_path, FULL_AT=6)
  assert code == 2 and "the disk is full; make room" in out and "Traceback" not in out, out
  code, out = start(1, 1, tmp_path)
  assert code == 0 and "going on at step 4" in out, out
  losses(tmp_path)  # each step once
