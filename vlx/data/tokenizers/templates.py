"""Chat templates of public checkpoints: where they stand, and how they are rendered."""

import atexit
import functools
import json
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from vlx.core.errors import UserError
from vlx.data.tokenizers.beside import Beside, read_object

_LOCK = threading.Lock()


def find(beside: Beside) -> str | None:
  """The template of a folder: in a file of its own, or in its configuration; None where it has none.

  Where there are several under names, it is the one called "default".

  Raises:
    UserError: where none of several is, and for what is no template.
  """
  folder = beside.folder
  if (file := folder / "chat_template.jinja").is_file():
    try:
      return file.read_text("utf-8")
    except (OSError, ValueError) as e:
      raise UserError(f"cannot read {file}: {e}") from e
  # A processor's, of images and texts, has the file.
  found = read_object(folder / "chat_template.json").get("chat_template")
  found = beside.config.get("chat_template") if found is None else found
  if isinstance(found, list):
    if not all(isinstance(t, Mapping) and isinstance(t.get("name"), str) for t in found):
      raise UserError(f"{folder}: chat_template is a list of something else than named templates")
    found = {t["name"]: t.get("template") for t in found}
  if isinstance(found, Mapping):
    if found and "default" not in found:
      names = ", ".join(map(repr, found))
      raise UserError(f"{folder}: of its chat templates, {names}, none is called 'default'")
    found = found.get("default")
  if found is not None and not isinstance(found, str):
    raise UserError(f"{folder}: its chat template is no text")
  return found


def render(template: str, values: Mapping[str, Any]) -> str:
  """A template's text, rendered by another process within its limits (`template_process`).

  Raises:
    UserError: where the template fails, or takes too long or too much memory.
  """
  asked = json.dumps({"template": template, "values": values}) + "\n"
  with _LOCK:
    process = _process(os.getpid())
    try:
      process.stdin.write(asked)
      process.stdin.flush()
      line = process.stdout.readline()
    except BrokenPipeError:
      line = ""
    except BaseException:  # an answer may be under way, which is nobody else's
      _process.cache_clear()
      process.kill()
      raise
    if not line:
      _process.cache_clear()
      process.wait()
  if not line:
    raise UserError("the model's chat template takes too long, or too much memory")
  answer = json.loads(line)
  if "error" in answer:
    said = " ".join(answer["error"].split())
    raise UserError(f"the model's chat template does not render: {said}")
  return answer["text"]


@functools.lru_cache(1)
def _process(owner: int) -> subprocess.Popen:
  """The process that renders for the process of that number: a fork starts its own."""
  del owner
  script = pathlib.Path(__file__).with_name("template_process.py")
  process = subprocess.Popen(
    [sys.executable, "-P", str(script)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    encoding="utf-8",
  )
  atexit.register(_end, process)
  return process


def _end(process: subprocess.Popen) -> None:
  process.kill()
  process.wait()
