"""What tests ask of any system: variables, shapes of them, the value of its loss."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from vlx.core import config as configs
from vlx.core import system as systems
from vlx.core.system import Aux
from vlx.evaluate.data import Data
from vlx.model import Model
from vlx.train import loop

_state = jax.jit(lambda system, key: systems.init(system, key)["state"], static_argnums=0)
_init = jax.jit(systems.init, static_argnums=0)  # equal systems are compiled once


def init(system, seed=0):
  """Fresh variables, those of parts too."""
  return _init(system, jax.random.key(seed))


def drawn(system, scale, seed=0):
  """Fresh state, and parameters far from the small ones at which training starts, where everything
  is nearly uniform.
  """
  rng = np.random.default_rng(seed)
  params = jax.tree.map(
    lambda x: jnp.asarray(scale * rng.normal(size=x.shape), x.dtype), shapes(system)["params"]
  )
  return {"params": params, "state": _state(system, jax.random.key(seed))}


def shapes(system):
  return systems.variable_shapes(system)


def loss(system, variables, batch, rng, *, step, train, frozen=frozenset()):
  """(Σ weight · sum / count, the rest, with the terms' means among its metrics)."""
  terms, aux = system.loss(variables, batch, rng, step=step, train=train, frozen=frozen)
  return systems.total(terms), Aux(
    {**{n: t.mean for n, t in terms.items()}, **aux.metrics}, aux.state
  )


def model(run, variables=None):
  """What evaluators are given of a run, freshly drawn."""
  if variables is None:
    variables = jax.tree.map(
      lambda x, name: jax.device_put(x, run.variable_shapes[name].sharding),
      init(run.system),
      systems.names(run.shapes),
    )
  return Model(run.system, variables, run.tokenizer, run.config.data.image_transform, run.mesh)


def data(run):
  return Data(run.config.data.source, run.tokenizer, run.config.data.image_transform)


def shared_steps():
  """Within, runs share their compiled step where their configs are equal in all that it is made
  of.
  """
  make, made, aside = loop.compile_step, {}, ("checkpoint", "evaluators", "log_every")

  def compile_step(run):
    config = run.config.copy_and_resolve_references().unlock()
    for name in aside:
      del config[name]
    key = configs.to_json(config), type(run.system).loss
    if key not in made:
      made[key] = make(run)
    return made[key]

  return mock.patch.object(loop, "compile_step", compile_step)


def measures(evaluator, model, data):
  """What an evaluator measures."""
  with jax.set_mesh(model.mesh):
    return evaluator(model, data).measures
