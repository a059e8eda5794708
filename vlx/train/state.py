"""The state that training carries from one step to the next, and what it only reads."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vlx.core.errors import UserError
from vlx.core.system import Frozen, System, Variables, flatten, is_below, split_state, unflatten

KINDS = ("params", "state")
ALL = "all"  # the one player of a system without players


class TrainState(flax.struct.PyTreeNode):
  """A pytree; all of it is in a checkpoint, and with the config and what is frozen it determines
  the rest of the run.

  Attributes:
    step: updates done so far.
    variables: `params` that learn, and `state` that no gradient touches.
    optimizer: of optax, for each player.
    average: moving average of those of `params` that one is kept of; {} where the config keeps
      none.
    finite: False once a loss was not finite; from then on a step changes nothing, so this is the
      state from before that batch.
  """

  step: jax.Array
  variables: Variables
  optimizer: dict[str, optax.OptState]
  average: dict[str, Any]
  finite: jax.Array

  @property
  def for_inference(self) -> Variables:
    """The variables that learn, averaged where there is an average."""
    params = {**flatten(self.variables["params"]), **flatten(self.average)}
    return {**self.variables, "params": unflatten(params)}


class Roles(NamedTuple):
  """Who moves each of a system's variables, by their names "params/…" and "state/…"."""

  names: Variables  # the tree of all variables, a name for each
  frozen: frozenset[str]  # names of those that nobody moves
  subtrees: Frozen  # paths of parameters below which all is frozen
  # of each parameter that learns the player; of `state`, where it is a player's own
  owner: Mapping[str, str]

  def split(self, variables: Variables) -> tuple[Variables, Variables]:
    """(what training moves, what is frozen), each as nested dicts without the other's leaves."""
    flat = flatten(variables)
    of = lambda names: {k: {} for k in KINDS} | unflatten({n: flat[n] for n in flat if n in names})
    return of(flat.keys() - self.frozen), of(self.frozen)

  def merge(self, moving: Variables, frozen: Variables) -> Variables:
    """The whole tree again."""
    flat = {**flatten(frozen), **flatten(moving)}
    return jax.tree.map(flat.__getitem__, self.names)

  def params_of(self, player: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the parameters that learn which belong to a player."""
    flat = flatten(params)
    return unflatten({n: x for n, x in flat.items() if self.owner[f"params/{n}"] == player})


def roles(
  system: System,
  names: Variables,
  frozen_params: frozenset[str],
  subtrees: Frozen,
  players: Mapping[str, str],
) -> Roles:
  """Who moves what.

  Args:
    system: whose variables they are.
    names: the tree of their names.
    frozen_params: paths of the parameters that do not learn.
    subtrees: paths below which none does.
    players: name → pattern of the whole paths that are its own; {} for a system without players.

  Raises:
    UserError: where a parameter that learns belongs to no player or to several.
  """
  frozen, owner = set(), {}
  for name in jax.tree.leaves(names):
    kind, _, path = name.partition("/")
    of_network = path if kind == "params" else split_state(path, system)[1]
    if path in frozen_params if kind == "params" else is_below(of_network, subtrees):
      frozen.add(name)
      continue
    owners = (
      [p for p, pattern in players.items() if re.fullmatch(pattern, of_network)]
      if players
      else [ALL]
    )
    if kind == "params" and len(owners) != 1:
      raise UserError(
        f"{path} belongs to {' and '.join(owners) or 'no player'}; a parameter that learns has one player"
      )
    if len(owners) == 1:
      owner[name] = owners[0]
  return Roles(names, frozenset(frozen), subtrees, owner)


def init(
  variables: Variables,
  optimizers: Mapping[str, optax.GradientTransformation],
  who: Roles,
  averaged: frozenset[str],
) -> TrainState:
  """A fresh state; works under `jax.eval_shape` and `jax.jit`.

  Args:
    variables: those that training moves.
    optimizers: of each player.
    who: moves what.
    averaged: paths of the parameters that an average is kept of.
  """
  params = variables["params"]
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    variables=variables,
    optimizer={name: o.init(who.params_of(name, params)) for name, o in optimizers.items()},
    # Copies: donated buffers must not be shared.
    average=unflatten({n: jnp.copy(x) for n, x in flatten(params).items() if n in averaged}),
    finite=jnp.array(True),
  )
