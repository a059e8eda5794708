"""Processes that make batches: they end with the process that asked, and it with them."""

import os
import pathlib
import signal
import subprocess
import sys
import time

SCRIPT = """
import os, pathlib, sys, time
import numpy as np
from absl import flags
from vlx.data import batches

FOLDER = pathlib.Path(sys.argv[1])

class Slow:
  def __getitem__(self, step):
    (FOLDER / str(os.getpid())).touch()
    time.sleep(0.05)
    return {"x": np.full(2, step)}

if __name__ == "__main__":
  flags.FLAGS.mark_as_parsed()
  for step, batch in enumerate(batches.iterate(Slow(), 0, 400, workers=2)):
    assert batch["x"][0] == step
    if step == 4:
      print("ready", flush=True)
"""


def is_running(pid):
  stat = pathlib.Path(f"/proc/{pid}/stat")
  return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def start(tmp_path):
  """(the process, the ids of its workers)."""
  script, folder = tmp_path / "script.py", tmp_path / "pids"
  script.write_text(SCRIPT)
  folder.mkdir()
  env = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
  process = subprocess.Popen(
    [sys.executable, script, folder],
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "ready\n"
  return process, [int(p.name) for p in folder.iterdir()]


def wait_for(condition, seconds=30):
  end = time.monotonic() + seconds
  while not condition() and time.monotonic() < end:
    time.sleep(0.1)
  return condition()


def test_workers_end_with_a_process_that_is_killed(tmp_path):
  process, workers = start(tmp_path)
  assert len(workers) == 2 and all(map(is_running, workers))
  process.kill()
  process.communicate()
  assert wait_for(lambda: not any(map(is_running, workers)))


def test_a_worker_that_is_killed_ends_the_run_with_a_word(tmp_path):
  process, workers = start(tmp_path)
  os.kill(workers[0], signal.SIGKILL)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 1 and "Worker process was terminated unexpectedly" in err
  assert wait_for(lambda: not any(map(is_running, workers)))
