"""Run folders of schema 1, from before parts and frozen parameters were data of the loop."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

SIZE = r"(?:random_affine|cut_object|resize|resize_small|central_crop|random_crop|random_resized_crop)\((\d+)"
TASKS = "vlx.evaluate.tasks"
RENAMED = {"bad_records": "max_bad_records", "ahead": "prefetch", "least_b": "min_scale"}
NEVER = 1_000_000_000  # `eval_every` of runs that are evaluated at their end


def upgrade(config: dict[str, Any], part: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
  """The content of a config.json of schema 1 as one of schema 2.

  How its parameters learn is not told: a run that goes on takes `optim.rules` from the config that
  it is started with.

  Args:
    config: the content.
    part: the section of the system that a folder, or a config file, is of.
  """
  data = {RENAMED.get(k, k): v for k, v in config["data"].items()}
  preprocess = data["preprocess"]
  evaluators = config.get("evaluators", {})
  image_transform = data.pop("picture", "") or next(
    (
      _image_ops(e["preprocess"])
      for e in evaluators.values()
      if "normalize" in e.get("preprocess", "")
    ),
    "",
  )
  upgraded = {
    **{k: v for k, v in config.items() if k not in ("init_from", "eval_every")},
    "data": {**data, "image_transform": image_transform, "streams": {}, "mixture": "by_step"},
    "init": [],
    "optim": {
      "decay_steps": 0,
      "players": {},
      "accumulate_inexact": False,
      **config["optim"],
      "rules": [],
    },
    "evaluators": _evaluators(evaluators, config.get("eval_every", NEVER), image_transform),
  }
  upgraded["system"], upgraded["model"] = _model(
    config["system"], dict(config["model"]), preprocess, part
  )
  return {"schema": 1, "requested": upgraded, "resolved": upgraded}


def converted(config: dict[str, Any]) -> dict[str, Any]:
  """The same of a folder that `vlx.convert` wrote, which says what the model is and no more."""
  system, model = _model(config["system"], dict(config["model"]), "", lambda path: {})
  section = {"system": system, "model": model, "data": {"image_transform": config["preprocess"]}}
  return {"schema": 1, "requested": section, "resolved": section}


def _image_ops(preprocess: str) -> str:
  """The ops up to `normalize`."""
  ops = preprocess.split("|")
  last = next(i for i, op in enumerate(ops) if op.startswith("normalize"))
  return "|".join(ops[: last + 1])


def _model(system: str, model: dict[str, Any], preprocess: str, part) -> tuple[str, dict[str, Any]]:
  """The class and its fields."""
  model = {RENAMED.get(k, k): v for k, v in model.items()}
  model.pop("finetune", None)
  if not model.pop("heads", True):
    system = "vlx.models.pretraining.bert.BERTEncoder"
  if isinstance(model.get("tokenizer"), str):
    model["tokenizer"] = part(model["tokenizer"])
  sizes, lengths = (
    re.findall(SIZE, preprocess),
    re.findall(r'tokenize\("caption", (\d+)', preprocess),
  )
  if "captioning" in system and lengths:
    model["text_length"] = int(lengths[-1])
  for field in ("tower", "encoder"):  # those that take images of any size did not say which
    tower = model.get(field)
    if (
      isinstance(tower, dict)
      and {"stage_sizes", "convolutions", "wide_kernel"} & set(tower)
      and sizes
    ):
      model[field] = {**tower, "image_size": int(sizes[-1])}
  return system, model


def _evaluators(sections: Mapping[str, Any], every: int, image_transform: str) -> dict[str, Any]:
  found = {}
  for name, section in sections.items():
    _, _, module, kind = section["type"].rsplit(".", 3)
    old = {k: v for k, v in section.items() if k not in ("preprocess", "text_length")}
    if kind == "NamedBoxes":
      module, kind = "pointing_game", "PointingGame"
    new = {**old, "type": f"{TASKS}.{module}.{kind}", "every": every if every < NEVER else 0}
    own = _image_ops(section["preprocess"])
    if own != image_transform:
      new["image_transform"] = own
    if kind == "Captions" and "pictures" in new:
      new["shown"] = new.pop("pictures")
    if kind in ("Generation", "Fidelity", "Reranking"):
      sampler = {k: new.pop(k) for k in ("temperature", "top_k", "guidance_scale") if k in new}
      new |= {"sampler": sampler}
    if kind == "Generation":
      new.pop("batch_size", None)
      tokenize = next(iter(re.findall(r"tokenize\([^)]*\)", section["preprocess"])))
      found["loss"] = {
        "type": f"{TASKS}.loss.HeldOutLoss",
        "splits": section["splits"],
        "ops": tokenize,
      }
    found[name] = new
  return found


def is_state(saved: Mapping[str, Any]) -> bool:
  """Whether the names in a checkpoint are those of a training state of schema 1."""
  return any("/inner_states/" in name for name in saved)


def state_names(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, str]:
  """Name in a training state of today → where it stood.

  Each rule of the optimizer had a state of its own, of the parameters that matched it: a
  parameter's moments are found by what their names end with.
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
    # Counts are all alike, but no two may be the same array: it is given away at each step.
    found[name] = moments[kind] if kind else counts.pop(0) if name.endswith("/count") else name
  return found


def variable_names(found: Mapping[str, str], parts: Sequence[str]) -> dict[str, str]:
  """Variable → its name in a checkpoint, where parts stood whole in `state`:
  "state/tokenizer/params/…".
  """
  renamed = {}
  for name, saved in found.items():
    kind, *steps = name.split("/")
    if kind == "state" and len(steps) > 2 and steps[0] in parts and steps[1] in ("params", "state"):
      name = "/".join([steps[1], steps[0], *steps[2:]])
    renamed[name] = saved
  return renamed
