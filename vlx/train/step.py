"""One training step: a pure function of (state, what is frozen, batch)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange

from vlx.core import capabilities
from vlx.core import system as systems
from vlx.core.config import ConfigDict
from vlx.core.system import (
  Aux,
  Batch,
  HasPlayers,
  System,
  Term,
  Trains,
  Variables,
  flatten,
  unflatten,
)
from vlx.train import optimizer as optimizers
from vlx.train import state as states
from vlx.train.state import ALL, Roles, TrainState

# (params, state, batch, key) → (terms, aux)
Loss = Callable[..., tuple[systems.Terms, Aux]]


class Player(NamedTuple):
  """One that learns in a step."""

  optim: ConfigDict
  optimizer: optax.GradientTransformation
  averaged: frozenset[str]  # paths of its parameters that an average is kept of


def players(
  system: System,
  optim: ConfigDict,
  who: Roles,
  learning: Mapping[str, optimizers.Learning],
  steps: int,
) -> dict[str, Player]:
  """Those of a system, `ALL` alone where it has none; none where nothing learns."""
  named = list(players_of(system))
  sections = optimizers.of_players(optim, named) if named else {ALL: optim} if who.owner else {}
  found = {}
  for name, section in sections.items():
    own = [p for p in learning if who.owner.get(f"params/{p}") == name]
    averaged = frozenset(p for p in own if section.ema_decay and learning[p].average)
    found[name] = Player(section, optimizers.make(section, steps, learning), averaged)
  return found


def begin(system: Trains, optim: ConfigDict, *, steps: int = 1000, seed: int = 0):
  """(state, what is frozen, jitted step) of a system by itself: without data, folder and mesh.

  What learns is initialized at random; `train_step(state, frozen, batch) -> (state, metrics)` gives
  its state away.

  Args:
    system: to train.
    optim: the config's section.
    steps: that the schedule of the learning rate is made for.
    seed: of the first parameters and of each step's randomness.
  """
  variables = jax.jit(lambda rng: systems.init(system, rng))(jax.random.key(seed))
  learning = optimizers.learning(optim, variables["params"], system)
  frozen = frozenset(path for path, one in learning.items() if one.frozen)
  who = states.roles(
    system,
    systems.names(variables),
    frozen,
    optimizers.frozen_subtrees(learning),
    players_of(system),
  )
  playing = players(system, optim, who, learning, steps)
  moving, fixed = who.split(variables)
  averaged = frozenset().union(*(player.averaged for player in playing.values()))
  state = states.init(moving, {n: p.optimizer for n, p in playing.items()}, who, averaged)
  train_step = make(system, who, playing, steps=steps, seed=seed, accumulate=optim.accumulate)
  return state, fixed, jax.jit(train_step, donate_argnums=0)


def players_of(system: System) -> Mapping[str, str]:
  """Name → pattern of the paths that are its own."""
  return system.players if capabilities.has(system, HasPlayers) else {}


def _gradients(loss: Loss, params, state, batch: Batch, rng, parts: int):
  """(terms' means, metrics, state, gradients) of a batch, taken in `parts` parts one after another.

  Memory is that of one part. Of the terms' counts each part needs the whole batch's: they are
  counted first, which costs little, for all else of that pass is pruned. So the gradients are those
  of the whole batch wherever terms add.
  """
  if parts == 1:

    def value(params):
      terms, aux = loss(params, state, batch, rng)
      return systems.total(terms), (terms, aux)

    (_, (terms, aux)), grads = jax.value_and_grad(value, has_aux=True)(params)
    return terms, aux.metrics, aux.state, grads

  # "(b parts)": each part takes every parts-th row, so that rows stay on their devices.
  split = jax.tree.map(lambda x: rearrange(x, "(b p) ... -> p b ...", p=parts), batch)
  inputs = (split, jnp.arange(parts))

  def of_part(params, state, inputs):
    part, index = inputs
    return loss(params, state, part, jax.random.fold_in(rng, index))

  def counted(total, inputs):
    terms, _ = of_part(params, state, inputs)
    return {n: total[n] + t.count for n, t in terms.items()}, None

  shapes = jax.eval_shape(of_part, params, state, jax.tree.map(lambda x: x[0], inputs))
  counts, _ = jax.lax.scan(counted, {n: jnp.zeros(()) for n in shapes[0]}, inputs)

  def one(carry, inputs):
    state, sums = carry

    def value(params):
      terms, aux = of_part(params, state, inputs)
      return sum(t.weight * Term(t.sum, counts[n]).mean for n, t in terms.items()), (terms, aux)

    (_, (terms, aux)), grads = jax.value_and_grad(value, has_aux=True)(params)
    means = {n: Term(t.sum, counts[n], t.weight / parts) for n, t in terms.items()}
    out = {n: (t.mean, t.weight) for n, t in means.items()}, aux.metrics, grads
    return (aux.state, jax.tree.map(jnp.add, sums, out)), None

  zeros = jax.tree.map(
    lambda s: jnp.zeros(s.shape, s.dtype),
    ({n: (t.sum, t.sum) for n, t in shapes[0].items()}, shapes[1].metrics, params),
  )
  (state, (means, metrics, grads)), _ = jax.lax.scan(one, (state, zeros), inputs)
  terms = {n: Term(mean, 1.0, weight) for n, (mean, weight) in means.items()}
  return terms, jax.tree.map(lambda x: x / parts, metrics), state, grads


def make(
  system: Trains,
  who: Roles,
  players: Mapping[str, Player],
  *,
  steps: int,
  seed: int,
  accumulate: int = 1,
):
  """train_step(state, frozen, batch) → (state, metrics).

  The key of step s is fold_in(seed, s); of several players each folds its index into it. They act
  one after another on the same batch, each with what the one before left, and a turn moves its own
  player's parameters and state alone. A loss that is not finite, or gradients that are not, leave
  everything as it was and set `state.finite` to False, for good.

  Args:
    system: with the loss.
    who: moves what.
    players: name → how it learns; of a system without players the one that is called `ALL`.
    steps: of the run.
    seed: of the run.
    accumulate: parts that a batch is taken in.
  """

  def turn(name: str, player: Player, state: TrainState, frozen: Variables, batch, rng):
    params, rest = state.variables["params"], {} if name == ALL else {"player": name}
    own = who.params_of(name, params)

    def loss(own, moving, batch, rng):
      learning = unflatten({**flatten(params), **flatten(own)})
      variables = who.merge({"params": learning, "state": moving}, frozen)
      terms, aux = system.loss(
        variables, batch, rng, step=state.step, train=True, frozen=who.subtrees, **rest
      )
      new = {f"state/{n}": x for n, x in flatten(aux.state).items()}
      kept = {
        n: new[f"state/{n}"] if who.owner.get(f"state/{n}", name) == name else x
        for n, x in flatten(moving).items()
      }
      return terms, Aux(aux.metrics, jax.tree.unflatten(jax.tree.structure(moving), kept.values()))

    terms, metrics, moved, grads = _gradients(
      loss, own, state.variables["state"], batch, rng, accumulate
    )
    grad_norm = optax.tree.norm(grads)
    updates, optimizer = player.optimizer.update(grads, state.optimizer[name], own)
    own = optax.apply_updates(own, updates)
    # The average follows closely while it is young: Polyak averaging with TensorFlow's warmup.
    decay = jnp.minimum(player.optim.ema_decay, (1 + state.step) / (10 + state.step))
    average, now = flatten(state.average), flatten(own)
    average |= {n: optax.incremental_update(now[n], average[n], 1 - decay) for n in player.averaged}
    new = state.replace(
      variables={"params": unflatten({**flatten(params), **now}), "state": moved},
      optimizer={**state.optimizer, name: optimizer},
      average=unflatten(average),
    )
    value = systems.total(terms)
    schedule = optimizers.schedule(player.optim, steps)
    measured = {
      **{n: t.mean for n, t in terms.items()},
      **metrics,
      "loss": value,
      "grad_norm": grad_norm,
      "lr": schedule(state.step),
    }
    return new, measured, jnp.isfinite(value) & jnp.isfinite(grad_norm)

  def train_step(
    state: TrainState, frozen: Variables, batch: Batch
  ) -> tuple[TrainState, dict[str, Any]]:
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    new, metrics, finite = state, {}, state.finite
    for index, (name, player) in enumerate(players.items()):
      key = rng if name == ALL else jax.random.fold_in(rng, index)
      new, measured, well = turn(name, player, new, frozen, batch, key)
      finite &= well
      metrics |= measured if name == ALL else {f"{name}/{k}": v for k, v in measured.items()}
    new = new.replace(step=state.step + 1)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    return kept.replace(finite=finite), {**metrics, "finite": finite}

  return train_step
