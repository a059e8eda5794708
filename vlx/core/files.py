"""Files that are whole or not there, whenever the process is killed."""

import json
import os
import pathlib
import re
import tempfile
from typing import Any


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


def read_json_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a file of JSON objects; one that was cut off is left out, and there are none
  where it is not.
  """
  lines = []
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      lines.append(json.loads(line))
    except ValueError:
      pass
  return lines


def safe_name(text: str, longest: int = 60) -> str:
  """A file's name from any text: letters and digits, the rest as "_"."""
  return re.sub(r"\W+", "_", text).strip("_")[:longest] or "unnamed"
