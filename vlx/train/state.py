"""What training carries from one step to the next."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from vlx.core.system import System, Variables


@flax.struct.dataclass
class TrainState:
  """A pytree; all of it is in a checkpoint, and with the config it determines the rest of the run.

  Attributes:
    step: updates done so far.
    variables: of the system: `params`, and `state` that no gradient touches.
    optimizer: of optax.
    average: moving average of `params`, None where the config keeps none.
    finite: False once a loss was not finite; from then on a step changes nothing, so this is the
      state from before that batch.
  """

  step: jax.Array
  variables: Variables
  optimizer: optax.OptState
  average: Any
  finite: jax.Array

  @property
  def for_inference(self) -> Variables:
    """The averaged parameters where there are any, else the current ones."""
    if self.average is None:
      return self.variables
    return {**self.variables, "params": self.average}


def init(
    system: System, optimizer: optax.GradientTransformation, rng: jax.Array, batch, *, averaged: bool
) -> TrainState:
  """A fresh state; works under `jax.eval_shape` and `jax.jit`."""
  variables = system.init(rng, batch)
  params = variables["params"]
  return TrainState(
      step=jnp.zeros((), jnp.int32),
      variables=variables,
      optimizer=optimizer.init(params),
      # A copy: donated buffers must not be shared.
      average=jax.tree.map(jnp.copy, params) if averaged else None,
      finite=jnp.array(True),
  )
