"""The one way in which systems call their Linen networks: variables in, arrays (and the new
state) out.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from vlx.core.system import Frozen, Variables, batch_shapes


def init(
  network: nn.Module,
  rng: jax.Array,
  inputs: Mapping[str, jax.ShapeDtypeStruct],
  *names: str,
  method: Any = None,
) -> Variables:
  """Fresh variables of a network that is called with the inputs of these names, or of what its
  `method` uses.
  """
  shapes = batch_shapes(inputs, 1)
  variables = network.lazy_init(rng, *(shapes[name] for name in names), method=method)
  return {
    "params": variables["params"],
    "state": {k: v for k, v in variables.items() if k != "params"},
  }


def infer(
  network: nn.Module, variables: Variables, *inputs: Any, method: Any = None, **options: Any
) -> Any:
  """The network's output without randomness; `state` rests."""
  return network.apply(
    {"params": variables["params"], **variables["state"]}, *inputs, method=method, **options
  )


def forward(
  network: nn.Module,
  variables: Variables,
  *inputs: Any,
  rng: jax.Array,
  train: bool,
  frozen: Frozen,
  method: Any = None,
  **options: Any,
) -> tuple[Any, Mapping[str, Any]]:
  """(the network's output, the new `state`): with dropout and batch statistics where `train`, but not in what is frozen.

  Args:
    network: takes `train`.
    variables: its own.
    *inputs: of the method.
    rng: of dropout.
    train: whether this is training.
    frozen: paths of subnetworks, within this network, that are called with `train=False`.
    method: of the network; its `__call__` where None.
    **options: of the method.
  """
  with nn.intercept_methods(_rest(frozen)):
    return network.apply(
      {"params": variables["params"], **variables["state"]},
      *inputs,
      train=train,
      rngs={"dropout": rng},
      mutable=list(variables["state"]),
      method=method,
      **options,
    )


def _rest(frozen: Frozen):
  """Calls of frozen modules, and of all that they call, are not of training."""

  def interceptor(next_function, args, kwargs, context):
    if kwargs.get("train") and "/".join(context.module.path) in frozen:
      kwargs = {**kwargs, "train": False}
    return next_function(*args, **kwargs)

  return interceptor


def below(frozen: Frozen, name: str) -> Frozen:
  """The frozen paths of the subnetwork or part `name`, as seen from there."""
  return frozenset(path.removeprefix(f"{name}/") for path in frozen if path.startswith(f"{name}/"))
