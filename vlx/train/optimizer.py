"""From the config's `optim` section to what each parameter learns by, and to an optax
transformation.

`rules` are (pattern, changes) pairs; a pattern is a regular expression that must match the whole of
a parameter's path, "image/transformer/blocks/mlp/fc1/kernel". The changes of all rules that match a
parameter are merged over the section's defaults, field by field, a later rule over an earlier one:
`dict(lr_scale=0.1)` for a tower leaves the zero weight decay of its biases.

A part (a system inside of the system) is frozen unless a rule names it, that is, begins with its
path.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax

from vlx.core import capabilities
from vlx.core.config import ConfigDict, nearest
from vlx.core.errors import UserError
from vlx.core.system import Frozen, System, Trains, flatten, parts


@dataclasses.dataclass(frozen=True)
class Learning:
  """How one parameter learns; the fields are those of a rule's changes."""

  lr_scale: float = 1.0
  weight_decay: float = 0.0
  average: bool = True  # whether the moving average keeps it, where there is one
  frozen: bool = False  # no gradient, no optimizer state, no average, not in checkpoints
  dtype: str = ""  # of a frozen parameter; its own where empty


def learning(optim: ConfigDict, params: Any, system: System) -> dict[str, Learning]:
  """How each parameter learns, by its path.

  Args:
    optim: the config's section.
    params: a tree of parameters, or of their shapes.
    system: whose parameters they are.

  Raises:
    UserError: for a pattern that no parameter matches, a field that there is not, a dtype of what
      learns.
  """
  fields = [f.name for f in dataclasses.fields(Learning)]
  for _, changes in optim.rules:
    if unknown := sorted(set(changes) - set(fields)):
      raise UserError(f"no optim.rules field {unknown[0]!r}: {nearest(unknown[0], fields)}")
  unused = {pattern for pattern, _ in optim.rules}
  below, trains = _part_paths(system), capabilities.has(system, Trains)
  found = {}
  for path in flatten(params):
    matching = [(p, changes) for p, changes in optim.rules if re.fullmatch(p, path)]
    unused -= {pattern for pattern, _ in matching}
    of = next((p for p in below if path.startswith(f"{p}/")), None)
    frozen = not trains or (of is not None and not any(p.startswith(of) for p, _ in matching))
    one = Learning(weight_decay=optim.weight_decay, frozen=frozen)
    for _, changes in matching:
      one = dataclasses.replace(one, **changes)
    if one.dtype and not one.frozen:
      raise UserError(
        f"optim.rules give {path} the dtype {one.dtype}, but it learns: only frozen parameters have one"
      )
    found[path] = one
  if unused:
    raise UserError(f"optim.rules that match no parameter: {', '.join(map(repr, sorted(unused)))}")
  return found


def _part_paths(system: System) -> list[str]:
  """The paths of all parts, the inner ones first."""
  return [
    path
    for name, inner in parts(system).items()
    for path in (*(f"{name}/{p}" for p in _part_paths(inner)), name)
  ]


def frozen_subtrees(found: Mapping[str, Learning]) -> Frozen:
  """The paths below which nothing learns, "encoder/backbone" as well as "encoder" where all of
  it is frozen.
  """
  learns, all_of_them = set(), set()
  for path, one in found.items():
    steps = path.split("/")
    prefixes = {"/".join(steps[:n]) for n in range(1, len(steps) + 1)}
    all_of_them |= prefixes
    if not one.frozen:
      learns |= prefixes
  return frozenset(all_of_them - learns)


def schedule(optim: ConfigDict, steps: int) -> optax.Schedule:
  """Linear warmup from 0 to `lr`, then the named decay to `final_lr_ratio` · lr at `decay_steps`,
  else at `steps`.

  "step" multiplies by `decay_factor` every `decay_every` steps instead.
  """
  decay_steps = max((optim.decay_steps or steps) - optim.warmup_steps, 1)
  decays = {
    "cosine": lambda: optax.cosine_decay_schedule(optim.lr, decay_steps, optim.final_lr_ratio),
    "linear": lambda: optax.linear_schedule(optim.lr, optim.final_lr_ratio * optim.lr, decay_steps),
    "constant": lambda: optax.constant_schedule(optim.lr),
    "step": lambda: optax.exponential_decay(
      optim.lr, optim.decay_every, optim.decay_factor, staircase=True
    ),
  }
  if optim.schedule not in decays:
    raise UserError(f"no optim.schedule {optim.schedule!r}: {nearest(optim.schedule, decays)}")
  warmup = optax.linear_schedule(0.0, optim.lr, optim.warmup_steps)
  return optax.join_schedules([warmup, decays[optim.schedule]()], [optim.warmup_steps])


def make(
  optim: ConfigDict, steps: int, found: Mapping[str, Learning]
) -> optax.GradientTransformation:
  """The transformation of gradients to updates; gradients are clipped by their global norm.

  Its state mirrors the tree of parameters that it is initialised with.

  Args:
    optim: the config's section.
    steps: of the run.
    found: how each of the parameters learns (`learning`).
  """

  def per_parameter(function):
    """A stateless transformation: function(how it learns, update, parameter)."""

    def update(updates, params):
      flat = flatten(params)
      changed = [function(found[n], u, flat[n]) for n, u in flatten(updates).items()]
      return jax.tree.unflatten(jax.tree.structure(updates), changed)

    return optax.stateless(update)

  decay = per_parameter(lambda one, u, p: u + one.weight_decay * p if one.weight_decay else u)
  scale = per_parameter(lambda one, u, p: one.lr_scale * u if one.lr_scale != 1 else u)
  lr = schedule(optim, steps)
  rules = {
    "adamw": lambda: (
      optax.scale_by_adam(optim.b1, optim.b2, optim.eps),
      decay,
      optax.scale_by_learning_rate(lr),
    ),
    "sgd": lambda: (decay, optax.sgd(lr, momentum=optim.b1)),
    # As in Graves, 2013, eq. 38-41: by the deviation of the gradients, with momentum.
    "rmsprop": lambda: (
      decay,
      optax.rmsprop(lr, optim.b2, optim.eps, centered=True, momentum=optim.b1),
    ),
  }
  if optim.name not in rules:
    raise UserError(f"no optim.name {optim.name!r}: {nearest(optim.name, rules)}")
  clip = optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity()
  return optax.chain(clip, *rules[optim.name](), scale)


def of_players(optim: ConfigDict, players: Sequence[str]) -> dict[str, ConfigDict]:
  """The section of each player: `optim.players` has what departs from the common one.

  Raises:
    UserError: for a player that the system has not, a field that the section has not.
  """
  for name in optim.players:
    if name not in players:
      raise UserError(
        f"no optim.players.{name}: {nearest(name, players) if players else 'this system has no players'}"
      )
  sections = {}
  for name in players:
    section = ConfigDict(optim.to_dict()).unlock()
    for field, value in optim.players.get(name, {}).items():
      if field not in section:
        raise UserError(f"no optim.players.{name}.{field}: {nearest(field, section)}")
      section[field] = value
    sections[name] = section
  return sections
