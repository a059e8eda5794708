"""What tests ask of any system: variables, shapes of them, the value of its loss."""

import jax

from vlx.core import system as systems
from vlx.core.system import Aux


def init(system, seed=0):
  """Fresh variables, those of parts too."""
  return jax.jit(lambda key: systems.init(system, key))(jax.random.key(seed))


def shapes(system):
  return jax.eval_shape(lambda key: systems.init(system, key), jax.random.key(0))


def loss(system, variables, batch, rng, *, step, train, frozen=frozenset()):
  """(Σ weight · sum / count, the rest, with the terms' means among its metrics)."""
  terms, aux = system.loss(variables, batch, rng, step=step, train=train, frozen=frozen)
  return systems.total(terms), Aux({**{n: t.mean for n, t in terms.items()}, **aux.metrics}, aux.state)
