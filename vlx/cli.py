"""How every command starts: flags, errors, caches."""

import ctypes
import errno
import logging as python_logging
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from vlx.core.config import find_config, load_config, nearest
from vlx.core.errors import UserError
from vlx.core.files import cache_dir


def use_compile_cache() -> None:
  """Keeps compiled programs between starts."""
  jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def keep_freed_memory() -> None:
  """Lets glibc keep large freed blocks for the next step instead of giving each back to the kernel.

  XLA on CPU allocates a step's temporaries anew; by default glibc maps and unmaps every large one,
  and the kernel zeroes its pages again each time. Other platforms and C libraries are left alone.
  """
  if not sys.platform.startswith("linux"):
    return
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except AttributeError:  # not glibc
    return
  # From malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX.
  for parameter, value in ((-1, 2**31 - 1), (-2, 2**28), (-4, 0)):
    mallopt(parameter, value)


def fail(message: str) -> None:
  print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
  sys.exit(2)


def _config_path(argv: list[str]) -> str | None:
  """The value of --config, given as "--config=PATH" or "--config PATH"."""
  for argument, following in zip(argv, [*argv[1:], ""]):
    if match := re.fullmatch(r"--?config(=(.*))?", argument):
      return match[2] if match[1] else following
  return None


def _parse_flags(argv: list[str]) -> list[str]:
  path = _config_path(argv)
  try:
    if path is not None:
      found = find_config(path)
      argv = [found if a == path else re.sub(r"^(--?config=).*", rf"\1{found}", a) for a in argv]
    return flags.FLAGS(argv)
  except (UserError, flags.Error) as e:
    fail(e)
  except (OSError, AttributeError, KeyError, TypeError, ValueError) as e:
    fail(_explain_override(argv, e))


def _explain_override(argv: list[str], error: Exception) -> str:
  """A line for a `--config…` flag that did not fit: the nearest valid name where one was
  mistyped.
  """
  config_path = _config_path(argv)
  if config_path is None:
    return str(error)
  try:
    config = load_config(config_path)
  except UserError as e:
    return str(e)
  for argument in argv:
    if not (match := re.match(r"--?config\.([^=]+)", argument)):
      continue
    section = config
    for part in match[1].split("."):
      if not hasattr(section, "keys") or part not in section:
        names = list(section.keys()) if hasattr(section, "keys") else []
        return f"the config has no {match[1]!r} ({part!r}): {nearest(part, names)}"
      section = section[part]
  return f"{type(error).__name__}: {error}"


def run(main: Callable[[], None]) -> None:
  """Parses flags and calls `main()`; what the user can mend is one line on stderr and exit code
  2.
  """

  def guarded(argv):
    if not flags.FLAGS["verbosity"].present:
      # TFDS, Orbax and JAX tell of every file and backend.
      logging.set_verbosity(logging.WARNING)
      logging.get_absl_logger().setLevel("ERROR")
      # Of a checkpoint's many writes each would tell of a full disk; Orbax raises the first.
      python_logging.getLogger("asyncio").setLevel("CRITICAL")
    logging.get_absl_handler().addFilter(_OneLine())
    if len(argv) > 1:
      fail(f"unexpected argument {argv[1]!r}; every option is a --flag=value (see --help)")
    signal.signal(signal.SIGTERM, _terminate)
    try:
      main()
    except UserError as e:
      fail(e)
    except KeyboardInterrupt:
      print("stopped", file=sys.stderr)
      sys.exit(128 + signal.SIGINT)
    except Exception as e:
      if (reason := _no_fault_of_vlx(e)) is None:
        raise
      fail(reason)

  _let_readers_go()
  use_compile_cache()
  keep_freed_memory()
  app.run(guarded, flags_parser=_parse_flags)


def _terminate(number, frame):
  """SIGTERM where nothing is to be saved: before a run's first step, in other commands."""
  del frame
  print("stopped by SIGTERM", file=sys.stderr)
  sys.exit(128 + number)


# What the system may refuse whatever vlx does. All but EACCES are also known by tensorstore's words.
REFUSALS = {
  errno.ENOSPC: "the disk is full; make room, and the same command goes on from the last whole checkpoint",
  errno.EDQUOT: "the disk's quota is used up; the same command goes on from the last whole checkpoint",
  errno.EROFS: "the file system is read-only",
  errno.EACCES: "permission denied",
  errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
}


def _no_fault_of_vlx(error: BaseException | None) -> str | None:
  """A line about an error, or one it came from, where the system refused something; else None."""
  if error is None:
    return None
  for number, reason in REFUSALS.items():
    if isinstance(error, OSError) and error.errno == number:
      return f"{reason}: {error.filename}" if error.filename else reason
    if number != errno.EACCES and os.strerror(number) in str(error):
      return reason
  return _no_fault_of_vlx(error.__cause__ or error.__context__)


# Codes that move a terminal's cursor, or worse; names of files and tokens of a vocabulary may hold
# them.
CONTROLS = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160)) if chr(c) not in "\t\n\r"}


class _Stream:
  """A standard stream that shows what is in names and texts, and obeys none of it; and that nobody
  may read any longer (`| head`, a closed terminal): what is written then is dropped, and the command
  goes on.
  """

  def __init__(self, stream):
    self._stream = stream

  def write(self, text: str) -> int:
    self._attempt(lambda: self._stream.write(text.translate(CONTROLS)))
    return len(text)

  def flush(self) -> None:
    self._attempt(lambda: self._stream.flush())

  def _attempt(self, do: Callable[[], object]) -> None:
    try:
      if not self._stream.closed:
        do()
    except OSError:
      self._stream = open(os.devnull, "w")

  def __getattr__(self, name: str):
    return getattr(self._stream, name)


def _let_readers_go() -> None:
  """Standard streams that are closed, or will be, or that cannot say a letter, stop no command."""
  for name in ("stdout", "stderr"):
    stream = getattr(sys, name) or open(os.devnull, "w")
    stream.reconfigure(errors="backslashreplace")
    setattr(sys, name, _Stream(stream))


class _OneLine(python_logging.Filter):
  """A message is one line, whatever names are in it."""

  def filter(self, record: python_logging.LogRecord) -> bool:
    message = record.getMessage().translate(CONTROLS)
    record.msg, record.args = r"\n".join(message.splitlines()), ()
    return True


def folder(flag: str, value: str) -> pathlib.Path:
  """The folder that a flag names, made where it is not there.

  Raises:
    UserError: for an empty name, and where no folder can be.
  """
  path = pathlib.Path(value).expanduser()
  try:
    if not value.strip():
      raise OSError("it is empty")
    path.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(f"--{flag}={value} cannot be a folder: {e.strerror or e}") from e
  return path


def define_config_flag() -> flags.FlagHolder:
  return config_flags.DEFINE_config_file(
    "config",
    None,
    "File and variant, e.g. configs/clip.py:emoji; --config.NAME=VALUE changes it.",
    lock_config=True,
  )
