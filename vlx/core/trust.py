"""Code of others that a folder may name.

A config names classes and functions by their import paths, and to import is to run. From a folder
(a run, a checkpoint that somebody sent) only vlx's own are taken, and those of packages that the user
trusts: the ones that a config on the command line names, those given to `trust`, and those in the
environment, VLX_TRUST=my_package,another.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from vlx.core.errors import UserError

_trusted = {"vlx"}

NAMES = ("system", "type", "kind")  # keys whose value is one
OPS = ("preprocess", "image_transform", "ops")  # keys whose value is a string of ops


def trust(*packages: str) -> None:
  """Lets folders name what is in these packages, from now on."""
  _trusted.update(packages)


def trust_named(config: Mapping[str, Any]) -> None:
  """Trusts the packages that a config names which the user gave."""
  trust(*(path.partition(".")[0] for path in import_paths(config)))


def check(content: Mapping[str, Any], where: Any) -> None:
  """Raises `UserError` where the content of a folder's config.json names code of others."""
  given = {*os.environ.get("VLX_TRUST", "").split(","), *_trusted}
  for path in import_paths(content):
    root = path.partition(".")[0]
    if root not in given:
      raise UserError(
        f"{where} names {path}, which is not vlx's own, and to load it would run it; if you trust"
        f" the folder and {root}, set VLX_TRUST={root} in the environment"
      )


def import_paths(content: Any, key: str = "") -> Iterator[str]:
  """All import paths in a config: of systems, evaluators, tokenizers, sources and ops."""
  if isinstance(content, Mapping):
    for name, value in content.items():
      yield from import_paths(value, name)
  elif isinstance(content, (list, tuple)):
    for value in content:
      yield from import_paths(value, key)
  elif isinstance(content, str):
    # Whatever `importlib` may take for a path: its names need not be Python's.
    if key in NAMES:
      named = [content]
    elif key == "source":
      specs = re.split(r"[;*]", content.removeprefix("mix:"))
      named = [spec.partition(":")[0] for spec in specs if ":" in spec]
    elif key in OPS:
      named = [call.partition("(")[0].strip() for call in content.split("|")]
    else:
      named = []
    yield from (name for name in named if "." in name)
