"""Files that are whole or not there, whenever the process is killed."""

import os
import pathlib
import tempfile


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
