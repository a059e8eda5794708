"""Checkpoints that were damaged in any way; runs that are killed at any moment."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlx.core import checkpoint
from vlx.core.errors import UserError
from vlx.core.files import read_steps
from vlx.train.run import open_run


def state(step):
  rng = np.random.default_rng(step)  # equal numbers would be few bytes on the disk
  return {
    "step": jnp.int32(step),
    "variables": {
      "params": {
        "w": jnp.asarray(rng.normal(size=(300, 7)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=5), jnp.bfloat16),
      }
    },
  }


def damage(folder, rng):
  """One file of a checkpoint cut short, with flipped bytes or one flipped bit, emptied or gone; or
  the whole folder emptied.
  """
  kind = rng.integers(6)
  # By size: the names of the data files are random.
  files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: (p.stat().st_size, p))
  path = files[rng.integers(len(files))]
  data = bytearray(path.read_bytes())
  if kind == 0:
    path.write_bytes(data[: rng.integers(len(data))] if data else b"")
  elif kind == 1 and data:
    for i in rng.integers(0, len(data), 3):
      data[i] ^= int(rng.integers(1, 256))
    path.write_bytes(data)
  elif kind == 2:
    path.write_bytes(b"")
  elif kind == 3:
    path.unlink()
  elif kind == 4 and data:
    path = files[-1]  # the arrays
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
  else:
    shutil.rmtree(folder)
    folder.mkdir()
  return f"{kind} {path.relative_to(folder)}"


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_never_taken_for_a_whole_one(tmp_path, count):
  """What comes back is the last checkpoint, the one before, or a line that says none can be
  read.
  """
  whole = tmp_path / "whole"
  with checkpoint.open_manager(whole, keep=2) as manager:
    for step in (1, 2):
      checkpoint.save(manager, step, state(step))
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0)
  )
  rng = np.random.default_rng(count)
  steps = {1: 0, 2: 0, None: 0}
  for i in range(count):
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder)
    how = [damage(folder / str(step), rng) for step in ((2,) if i % 4 else (1, 2))]
    with checkpoint.open_manager(folder, read_only=True) as manager:
      try:
        step, found = checkpoint.restore_latest(manager, like) or (None, None)
      except UserError as e:
        assert "none of the checkpoints" in str(e), how
        step = None
    steps[step] += 1
    if step is not None:
      jax.tree.map(np.testing.assert_array_equal, found, state(step))
    shutil.rmtree(folder)
  assert steps[1] > 0, steps


@pytest.fixture
def saved(tmp_path):
  """A folder of two checkpoints, as of a run, and their shapes."""
  with checkpoint.open_manager(tmp_path / "checkpoints", keep=2) as manager:
    for step in (1, 2):
      checkpoint.save(manager, step, state(step))
  return tmp_path


def turn_a_bit(step_folder):
  """Of an array's data, by which a number becomes another."""
  path = max(step_folder.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def rename(step_folder):
  step_folder.rename(step_folder.parent / "100")


def link(step_folder):
  elsewhere = step_folder.parent.parent / "elsewhere"
  step_folder.rename(elsewhere)
  step_folder.symlink_to(elsewhere)


def drop_an_array(step_folder):
  path = step_folder / "default" / "_METADATA"
  content = json.loads(path.read_text())
  (key,) = (k for k in content["tree_metadata"] if "'b'" in k)
  del content["tree_metadata"][key]
  path.write_text(json.dumps(content))


@pytest.mark.parametrize("damage", (turn_a_bit, rename, link, drop_an_array))
def test_readers_of_a_run_take_the_checkpoint_before(saved, damage):
  damage(saved / "checkpoints" / "2")
  stored = checkpoint.RunVariables(saved)
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  found = stored.read(
    {
      name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one)
      for name, x in stored.shapes.items()
      if name != "params/b" or damage is not drop_an_array
    }
  )
  for name, x in found.items():
    np.testing.assert_array_equal(x, state(1)["variables"]["params"][name.removeprefix("params/")])
  with checkpoint.open_manager(saved / "checkpoints", read_only=True) as manager:
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), state(0))
    if damage is not drop_an_array:  # of which another is wanted
      step, found = checkpoint.restore_latest(manager, like)
      assert step == 1
      jax.tree.map(np.testing.assert_array_equal, found, state(1))


def test_what_lies_elsewhere_is_not_asked_of_a_checkpoint(saved):
  assert checkpoint.RunVariables(saved).read({}) == {}


def test_checkpoints_of_before_there_were_checksums_are_read(saved):
  folder = saved / "older" / "checkpoints"
  with checkpoint.open_manager(folder) as manager:
    manager.save(3, args=checkpoint.ocp.args.PyTreeSave(state(3)))
  with checkpoint.open_manager(folder, read_only=True) as manager:
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), state(0))
    step, found = checkpoint.restore_latest(manager, like)
  assert step == 3
  jax.tree.map(np.testing.assert_array_equal, found, state(3))


STEPS, KILLS = 800, 20
COMMAND = [
  sys.executable,
  "tests/train/worker.py",
  "--config=configs/clip.py:smoke",
  f"--config.steps={STEPS}",
  "--config.checkpoint.every=20",
  "--config.data.batch_size=16",
  "--config.checkpoint.keep=2",
  "--config.evaluators.retrieval.splits=('combo',)",
  "--config.evaluators.retrieval.gallery=('combo',)",
]


def launch(workdir, record):
  record.mkdir(exist_ok=True)
  environment = {
    **os.environ,
    "PYTHONPATH": ".",
    "RECORD": str(record),
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
  }
  return subprocess.Popen(
    [*COMMAND, f"--workdir={workdir}"],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def final_state(workdir):
  run = open_run(str(workdir))
  with (
    jax.set_mesh(run.mesh),
    checkpoint.open_manager(workdir / "checkpoints", read_only=True) as m,
  ):
    step, found = checkpoint.restore_latest(m, run.state_shapes)
  assert step == STEPS
  return jax.tree.map(np.asarray, found)


def kill(process, metrics, rng):
  """SIGKILL at a random moment: in one of four cases while it starts, else up to 1.5 s into its
  steps.
  """
  if rng.random() < 0.25:
    time.sleep(rng.uniform(0, 10))
  else:
    known = metrics.stat().st_mtime_ns if metrics.exists() else 0
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_mtime_ns > known):
      time.sleep(0.02)
    time.sleep(rng.uniform(0, 1.5))
  assert process.poll() is None, f"it ended before it was killed: {process.communicate()[0]}"
  process.send_signal(signal.SIGKILL)
  process.communicate()


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(tmp_path):
  process = launch(tmp_path / "whole", tmp_path / "ids")
  out = process.communicate(timeout=600)[0]
  assert process.returncode == 0, out
  rng = random.Random(0)
  for _ in range(KILLS):
    kill(launch(tmp_path / "killed", tmp_path / "ids"), tmp_path / "killed" / "metrics.jsonl", rng)
  process = launch(tmp_path / "killed", tmp_path / "ids")
  out = process.communicate(timeout=600)[0]
  assert process.returncode == 0, out
  jax.tree.map(
    np.testing.assert_array_equal, final_state(tmp_path / "killed"), final_state(tmp_path / "whole")
  )
  one, other = (read_steps(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed"))
  assert [m["step"] for m in other] == [m["step"] for m in one]
  assert [m["train/loss"] for m in other] == [m["train/loss"] for m in one]
  ids = {}
  for path in (tmp_path / "ids").glob("*"):
    for line in path.read_text().splitlines():
      step, rows, examples = json.loads(line)
      assert ids.setdefault(step, examples) == examples
  assert set(ids) >= set(range(STEPS))
