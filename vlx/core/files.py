"""Files: written whole or not at all, whenever the process is killed; read as somebody may have sent
them.
"""

import json
import logging
import os
import pathlib
import re
import stat
import tempfile
from typing import Any

from vlx.core.errors import UserError

MAX_JSON = 1 << 28  # bytes


def write(path: pathlib.Path, content: str | bytes) -> None:
  """Puts text (as UTF-8) or bytes at `path` in one step, making folders.

  What stood there stays until the new content is on the disk.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with open(handle, "wb") as f:
      f.write(content.encode() if isinstance(content, str) else content)
      f.flush()
      os.fsync(f.fileno())
    os.chmod(name, 0o666 & ~_umask())
    os.replace(name, path)
  except BaseException:
    os.unlink(name)
    raise


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask


def cache_dir() -> pathlib.Path:
  """Where vlx keeps what it can make again: `$VLX_CACHE`, else `~/.cache/vlx`."""
  return pathlib.Path(os.environ.get("VLX_CACHE", "~/.cache/vlx")).expanduser()


def check_ordinary(path: pathlib.Path) -> None:
  """Raises `UserError` for what is no ordinary file: a pipe is waited for, a device has no end."""
  try:
    mode = path.stat().st_mode
  except (OSError, ValueError) as e:  # half a surrogate pair
    raise UserError(f"cannot read {path}: {getattr(e, 'strerror', e)}") from e
  if not stat.S_ISREG(mode):
    raise UserError(f"cannot read {path}: it is no ordinary file")


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a file of JSON.

  Raises:
    UserError: where there is no such file, or something else in it.
  """
  check_ordinary(path)
  try:
    if path.stat().st_size > MAX_JSON:
      raise ValueError(f"it has more than {MAX_JSON} bytes")
    found = json.loads(path.read_bytes())
  except OSError as e:
    raise UserError(f"cannot read {path}: {e.strerror}") from e
  except (ValueError, RecursionError) as e:
    raise UserError(f"{path} is not JSON: {e}") from e
  if not isinstance(found, dict):
    raise UserError(f"{path} holds no object of JSON")
  return found


def read_steps(path: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a run's metrics.jsonl, JSON objects of numbers with a `step`; none where it is not.

  Damaged lines, as a run that is killed may leave one, are counted and passed over.
  """
  found, damaged = [], 0
  for line in path.read_bytes().split(b"\n") if path.is_file() else []:
    try:
      values = json.loads(line)
      numbers = all(type(x) in (int, float) for x in values.values())
      if not numbers or type(values["step"]) is not int:
        raise ValueError("not numbers")
      found.append(values)
    except (ValueError, AttributeError, KeyError, RecursionError):
      damaged += bool(line.strip())
  if damaged:
    logging.warning("%s: %d damaged lines are passed over", path, damaged)
  return found


def refuse_strange(folder: pathlib.Path) -> None:
  """For a folder that is to be written to, and that somebody may have sent.

  Raises:
    UserError: where a link leads out of it, or there is something else than files and folders.
  """
  root = folder.resolve()
  for path in folder.rglob("*"):
    if path.is_symlink() and not path.resolve().is_relative_to(root):
      raise UserError(f"{path} is a link that leads out of the folder; put what it names there")
    if not (path.is_file() or path.is_dir()):
      raise UserError(f"{path} is neither a file nor a folder; remove it")


def safe_name(text: str, longest: int = 60) -> str:
  """A file's name from any text: letters and digits, the rest as "_"."""
  return re.sub(r"\W+", "_", text).strip("_")[:longest] or "unnamed"
