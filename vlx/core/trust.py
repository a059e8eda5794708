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

PATH = r"[A-Za-z_]\w*(?:\.\w+)+"
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
    if key in NAMES and re.fullmatch(PATH, content):
      yield content
    elif key == "source":
      for spec in re.split(r"[;*]", content.removeprefix("mix:")):
        kind = spec.partition(":")[0]
        if ":" in spec and re.fullmatch(PATH, kind):
          yield kind
    elif key in OPS:
      yield from re.findall(rf"(?:^|\|)\s*({PATH})", content)
