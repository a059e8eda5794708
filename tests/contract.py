"""What tests ask of any system: variables, shapes of them, the value of its loss."""

import jax

from vlx.core import system as systems
from vlx.core.system import Aux
from vlx.evaluate.data import Data
from vlx.model import Model


def init(system, seed=0):
  """Fresh variables, those of parts too."""
  return jax.jit(lambda key: systems.init(system, key))(jax.random.key(seed))


def shapes(system):
  return jax.eval_shape(lambda key: systems.init(system, key), jax.random.key(0))


def loss(system, variables, batch, rng, *, step, train, frozen=frozenset()):
  """(Σ weight · sum / count, the rest, with the terms' means among its metrics)."""
  terms, aux = system.loss(variables, batch, rng, step=step, train=train, frozen=frozen)
  return systems.total(terms), Aux(
    {**{n: t.mean for n, t in terms.items()}, **aux.metrics}, aux.state
  )


def model(run, variables=None):
  """What evaluators are given of a run, freshly drawn."""
  if variables is None:
    with jax.set_mesh(run.mesh):
      variables = run.variables(*run.fresh())
  return Model(run.system, variables, run.tokenizer, run.config.data.image_transform, run.mesh)


def data(run):
  return Data(run.config.data.source, run.tokenizer, run.config.data.image_transform)


def measures(evaluator, model, data):
  """What an evaluator measures."""
  with jax.set_mesh(model.mesh):
    return evaluator(model, data).measures
