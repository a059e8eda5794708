"""Run folders of schema 1, from before parts and frozen parameters were data of the loop."""

from collections.abc import Mapping, Sequence
from typing import Any


def upgrade(config: dict[str, Any]) -> dict[str, Any]:
  """The content of a config.json of schema 1 as one of schema 2."""
  return {"schema": 2, "requested": config, "resolved": config}


def is_state(saved: Mapping[str, Any]) -> bool:
  """Whether the names in a checkpoint are those of a training state of schema 1."""
  return any("/inner_states/" in name for name in saved)


def state_names(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, str]:
  """Name in a training state of today → where it stood.

  Each rule of the optimizer had a state of its own, of the parameters that matched it: a parameter's moments are
  found by what their names end with.
  """
  moments, counts = {}, []
  for name in saved:
    if name.startswith("optimizer/") and "/inner_state/" in name:
      _, _, rest = name.partition("/inner_state/")
      kind = rest.partition("/")[2]  # behind the place in the chain
      if kind == "count":
        counts.append(name)
      else:
        moments[kind] = name
  found = {}
  for name in wanted:
    if not name.startswith("optimizer/"):
      found[name] = name
      continue
    kind = next((k for k in moments if name.endswith(f"/{k}")), None)
    found[name] = moments[kind] if kind else counts[0] if name.endswith("/count") else name
  return found


def variable_names(found: Mapping[str, str], parts: Sequence[str]) -> dict[str, str]:
  """Variable → its name in a checkpoint, where parts stood whole in `state`: "state/tokenizer/params/…"."""
  renamed = {}
  for name, saved in found.items():
    kind, *steps = name.split("/")
    if kind == "state" and len(steps) > 2 and steps[0] in parts and steps[1] in ("params", "state"):
      name = "/".join([steps[1], steps[0], *steps[2:]])
    renamed[name] = saved
  return renamed
