"""Going on with a run: what may change, namely all that leaves its mathematics alone."""

import pathlib
from collections.abc import Mapping
from typing import Any

from vlx.core import config as configs
from vlx.core import distributed
from vlx.core.config import ConfigDict, Kept
from vlx.core.errors import UserError

# By their dotted names, sections or values.
FREE = (
  "mesh",
  "partition",
  "log_every",
  "checkpoint",
  "evaluators",
  "baselines",
  "data.image_transform",
  "data.workers",
  "data.threads",
  "data.prefetch",
  "data.max_bad_records",
)
# Schedules that do not know how many steps the run has.
ENDLESS = ("constant", "step")


def config(kept: Kept, requested: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
  """The resolved config with which a folder's run goes on; no source is opened again.

  Args:
    kept: what the folder has.
    requested: what is asked for now.
    workdir: the folder.

  Raises:
    UserError: where the mathematics would be another; every difference is named.
  """
  ours, theirs = (ConfigDict(c.to_dict()) for c in (_plain(requested), kept.requested))
  # A folder of schema 1 does not say in today's words how its parameters learn and where they
  # started.
  free = (*FREE, "optim.rules", "init") if kept.schema == 1 else FREE
  if ours.optim.decay_steps or ours.optim.schedule in ENDLESS:
    free = (*free, "steps")
  lines = configs.differences(_without(theirs.to_dict(), free), _without(ours.to_dict(), free))
  if lines:
    hint = (
      "; steps may change where optim.decay_steps was given"
      if any(s.startswith("steps:") for s in lines)
      else ""
    )
    raise UserError(
      f"{workdir} holds a run with another config ({'; '.join(lines)}{hint}); name another --workdir, or remove"
      " this one"
    )
  resolved = ConfigDict(kept.resolved.to_dict())
  for name in free:
    section, _, field = name.rpartition(".")
    (resolved[section] if section else resolved)[field] = (ours[section] if section else ours)[
      field
    ]
  return resolved.lock()


def keep(run_requested: ConfigDict, resolved: ConfigDict, workdir: pathlib.Path) -> None:
  """Writes the folder's config.json."""
  if distributed.is_first():
    configs.write(workdir, Kept(run_requested, resolved))


def _plain(config: ConfigDict) -> ConfigDict:
  """As it comes back from a file: tuples are lists."""
  return configs.from_json(configs.to_json(config))


def _without(config: Mapping[str, Any], names: tuple[str, ...], where: str = "") -> dict[str, Any]:
  return {
    k: _without(v, names, f"{where}{k}.") if isinstance(v, Mapping) else v
    for k, v in config.items()
    if f"{where}{k}" not in names
  }
