"""What a user's mistake looks like: one line on stderr, exit code 2, nothing harmed."""

import os
import pathlib
import subprocess
import sys

import pytest


def command(*args):
  done = subprocess.run([sys.executable, "-m", *args], capture_output=True, text=True, timeout=300)
  return done.returncode, done.stderr.strip()


SMOKE = "--config=configs/clip.py:smoke"


@pytest.mark.parametrize(
  "args,message",
  [
    (("vlx", "trian"), "one of train, evaluate"),
    (("vlx.train", SMOKE), "give --config=FILE:VARIANT and --workdir=DIR"),
    (("vlx.train", SMOKE, "--workdir={}/run", "--config.optim.lrr=1"), "did you mean 'lr'?"),
    (("vlx.train", "--config=configs/clip.py:smok", "--workdir={}/run"), "did you mean 'smoke'?"),
    (("vlx.train", "--config=configs/clap.py", "--workdir={}/run"), "no file configs/clap.py"),
    (("vlx.train", SMOKE, "--workdir={}/run", "--config.steps=many"), "steps"),
    (
      ("vlx.train", SMOKE, "--workdir={}/run", "--config.model.image.dept=3"),
      "did you mean 'depth'?",
    ),
    (
      ("vlx.train", SMOKE, "--workdir={}/run", "--config.data.preprocess=decod"),
      "did you mean 'decode'?",
    ),
    (
      ("vlx.train", SMOKE, "--workdir={}/run", "--config.data.source=folder:{}"),
      "neither metadata.jsonl",
    ),
    (("vlx.train", SMOKE, "--workdr=x"), "workdr"),
    (("vlx.train", "smoke"), "unexpected argument 'smoke'"),
    (
      ("vlx.train", SMOKE, "--workdir={}/run", "--num_processes=2"),
      "give --coordinator, --num_processes",
    ),
    (
      (
        "vlx.train",
        SMOKE,
        "--workdir={}/run",
        "--coordinator=localhost:1",
        "--num_processes=2",
        "--process_id=2",
      ),
      "process_id",
    ),
    (("vlx.evaluate", "--workdir={}"), "holds no run"),
    (("vlx.ablate", "--experiment={}/x.py", "--workdir={}"), "no file"),
  ],
)
def test_a_mistake_is_one_line_and_exit_code_2(args, message, tmp_path):
  code, stderr = command(*(a.format(tmp_path) for a in args))
  assert code == 2, stderr
  assert stderr.startswith("error: ") and len(stderr.splitlines()) == 1
  assert message in stderr


def test_configs_are_found_from_any_folder(tmp_path):
  """By the command `vlx`; the mistake shows that the file was read."""
  done = subprocess.run(
    [sys.executable, "-m", "vlx", "train", "--config=configs/clip.py:smok", "--workdir=run"],
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[1])},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 2 and "did you mean 'smoke'?" in done.stderr
