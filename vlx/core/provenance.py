"""Provenance: what lets a figure be found again, the command, the code, the machine."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from typing import Any

import jax

PACKAGES = ("jax", "flax", "optax", "numpy")


def provenance() -> dict[str, Any]:
  """This process's command, date, commit, device and versions; all that JSON can hold.

  `commit` is None where vlx is not a git checkout, and ends in "+" where files differ from it.
  """
  return {
    "command": command(),
    "date": datetime.date.today().isoformat(),
    "commit": _commit(),
    "device": _device(),
    "versions": {"python": platform.python_version()}
    | {name: importlib.metadata.version(name) for name in PACKAGES},
  }


def command() -> str:
  """As it was typed: `python -m vlx.train --config=…`."""
  spec = getattr(sys.modules["__main__"], "__spec__", None)
  if spec is not None:
    start = ["python", "-m", spec.name.removesuffix(".__main__")]
  elif sys.argv[0].startswith("vlx "):  # the command vlx
    return f"{sys.argv[0]} {shlex.join(sys.argv[1:])}"
  else:
    start = ["python", sys.argv[0]]
  return shlex.join([*start, *sys.argv[1:]])


def _commit() -> str | None:
  root = pathlib.Path(__file__).parents[2]
  if not (root / ".git").exists():  # else git would tell of whatever folder stands around
    return None
  # Not by a tag's name.
  git = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
  try:
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return None


def _device() -> str:
  """8 x TPU v5e; 2 cores of Intel(R) Xeon(R) Processor."""
  devices = jax.devices()
  if devices[0].platform != "cpu":
    return f"{len(devices)} x {devices[0].device_kind}"
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  return f"{cores} core{'s' if cores != 1 else ''} of {_processor()}"


def _processor() -> str:
  """The CPU's name, which Python itself tells on some platforms alone."""
  info = pathlib.Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.exists() else []
  names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.processor() or platform.machine()
