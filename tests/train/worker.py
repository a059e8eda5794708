"""vlx.train, with the rows of every batch written down; for tests of many processes.

Beside the flags of vlx.train: RECORD=DIR in the environment for `ids.PID.jsonl`, STOP_AT=STEP to
get SIGTERM when that step is logged (in process 0), KILL_AT=STEP to be killed then (in the last
process), FULL_AT=STEP for a disk that is full then, UNREADABLE=STEP for a checkpoint that the last
process, and it alone, cannot read.
"""

import json
import os
import pathlib
import signal

import jax
import orbax.checkpoint as ocp

from vlx import cli
from vlx.data.batches import Batches
from vlx.train import __main__ as train
from vlx.train.logging import MetricsLog

getitem, write, restore = Batches.__getitem__, MetricsLog.write, ocp.PyTreeCheckpointHandler.restore


def recorded(self, step):
  batch = getitem(self, step)
  with open(pathlib.Path(os.environ["RECORD"]) / f"ids.{os.getpid()}.jsonl", "a") as f:
    f.write(json.dumps([step, self._rows.tolist(), batch["example_id"].tolist()]) + "\n")
  return batch


def stopping(self, step, values):
  write(self, step, values)
  if step == int(os.environ.get("STOP_AT", -1)) and jax.process_index() == 0:
    os.kill(os.getpid(), signal.SIGTERM)
  if step == int(os.environ.get("KILL_AT", -1)) and jax.process_index() == jax.process_count() - 1:
    os.kill(os.getpid(), signal.SIGKILL)
  if step == int(os.environ.get("FULL_AT", -1)):
    pathlib.Path("/dev/full").write_text("no room")


def unreadable(self, folder, **kwargs):
  last = jax.process_index() == jax.process_count() - 1
  if folder.parent.name == os.environ.get("UNREADABLE") and last:
    raise OSError("a broken disk")
  return restore(self, folder, **kwargs)


if __name__ == "__main__":
  if "RECORD" in os.environ:
    Batches.__getitem__ = recorded
  MetricsLog.write = stopping
  ocp.PyTreeCheckpointHandler.restore = unreadable
  cli.run(train.main)
