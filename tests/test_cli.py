"""What a user's mistake looks like: one line on stderr, exit code 2, nothing harmed."""

import errno
import os
import pathlib
import shlex
import subprocess
import sys

import pytest

from vlx import cli
from vlx.core import config as configs
from vlx.core.errors import UserError
from vlx.train.run import check_numbers

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
def test_a_mistake_is_one_line_and_exit_code_2(args, message, tmp_path, command):
  code, _, stderr = command(*(a.format(tmp_path) for a in args))
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


def test_a_reader_that_goes_away_stops_no_command(tmp_path):
  """`| head -1`, a closed terminal."""
  script = (
    "import sys\nfrom vlx import cli\ncli._let_readers_go()\n"
    "for i in range(20_000): print('line', i, flush=True)\n"
    f"open({str(tmp_path / 'done')!r}, 'w').write('done')\n"
  )
  for how in ("| head -1", "2>&- >&-"):
    (tmp_path / "done").unlink(missing_ok=True)
    command = f"{sys.executable} -c {shlex.quote(script)} {how}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "done").exists(), done.stderr
    assert "Error" not in done.stderr


@pytest.mark.parametrize("number, said", ((15, "stopped by SIGTERM"), (2, "stopped")))
def test_a_signal_before_there_is_anything_to_save_is_a_line(number, said):
  script = (
    "import os, signal, time\nfrom vlx import cli\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job ignores it
    f"def main():\n  os.kill(os.getpid(), {number})\n  time.sleep(60)\n"
    "cli.run(main)\n"
  )
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
  assert (done.returncode, done.stderr.strip()) == (128 + number, said)


def test_names_move_no_cursor_and_forge_no_line():
  script = (
    "import logging\nfrom vlx import cli\n"
    "def main():\n"
    "  logging.error('bad record a\\x1b[2Jb\\ninfo: all is well')\n"
    "  print('caf\\xe9 \\ud800 \\x9b1m')\n"
    "  raise cli.UserError('no\\x1b[2J')\n"
    "cli.run(main)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", script],
    env=os.environ | {"PYTHONIOENCODING": "ascii"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert done.stdout == r"caf\xe9 \ud800 \x9b1m" + "\n"
  log, error = done.stderr.splitlines()
  assert log.endswith(r"bad record a\x1b[2Jb\ninfo: all is well")
  assert error == r"error: no\x1b[2J"


@pytest.mark.parametrize(
  "error, message",
  (
    (OSError(errno.ENOSPC, "No space left"), "the disk is full"),
    (OSError(errno.EROFS, "Read-only", "/x/y"), "the file system is read-only: /x/y"),
    (PermissionError(errno.EACCES, "denied", "/x"), "permission denied: /x"),
    (OSError(errno.EMFILE, "Too many open files"), "raise the limit"),
    (ValueError(f"tensorstore: {os.strerror(errno.ENOSPC)} [path]"), "the disk is full"),
    (ValueError("a bug"), None),
    (FileNotFoundError(errno.ENOENT, "No such file", "/x"), None),
  ),
)
def test_what_the_system_refuses_is_a_line_and_a_bug_is_none(error, message):
  outer = RuntimeError("while saving")
  outer.__cause__ = error
  found = cli._no_fault_of_vlx(outer)
  assert found is None if message is None else message in found


@pytest.mark.parametrize(
  "name, value",
  (
    ("steps", -1),
    ("seed", -1),
    ("seed", 2**40),
    ("data.batch_size", 0),
    ("checkpoint.every", 0),
    ("checkpoint.patience", -1),
  ),
)
def test_numbers_that_make_no_sense_are_told(name, value):
  config = configs.load_config("configs/clip.py:smoke")
  config.update_from_flattened_dict({name: value})
  with pytest.raises(UserError, match=f"{name} must be at least"):
    check_numbers(config)


def test_a_folder_that_cannot_be_is_told(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert cli.folder("workdir", "~/new/run") == tmp_path / "new" / "run"
  (tmp_path / "file").touch()
  for value in ("", f"{tmp_path}/file", f"{tmp_path}/file/run"):
    with pytest.raises(UserError, match="--workdir=.* cannot be a folder"):
      cli.folder("workdir", value)
