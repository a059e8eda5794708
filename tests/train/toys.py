"""Small systems and a source for tests, named by import path as anybody's own would be."""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from vlx.core import system as systems
from vlx.core.system import Aux, Term


@runtime_checkable
class Scales(Protocol):
  """Multiplies."""

  def scale(self, v, x): ...


@dataclasses.dataclass(frozen=True)
class Scaler:
  """x · kernel, on top of some blocks that are there to be taken; learns y."""

  width: int = 3
  depth: int = 4

  def init(self, rng):
    keys = jax.random.split(rng, 2)
    params = {
      "net": {"kernel": jax.random.normal(keys[0], (self.width, 1)), "bias": jnp.zeros(1)},
      "blocks": {"gain": jax.random.normal(keys[1], (self.depth, self.width))},
    }
    return {"params": params, "state": {"batch_stats": {"net": {"mean": jnp.zeros(1)}}}}

  def inputs(self):
    shape = jax.ShapeDtypeStruct
    return {"x": shape((self.width,), jnp.float32), "y": shape((1,), jnp.float32)}

  def scale(self, v, x):
    params = v["params"]
    return (x * params["blocks"]["gain"].sum(0)) @ params["net"]["kernel"] + params["net"]["bias"]

  def loss(self, variables, batch, rng, *, step, train, frozen):
    found = self.scale(variables, batch["x"])
    state = variables["state"]
    if train and not systems.is_below("net", frozen):
      mean = 0.9 * state["batch_stats"]["net"]["mean"] + 0.1 * found.mean(0)
      state = {"batch_stats": {"net": {"mean": mean}}}
    squares = ((found - batch["y"]) ** 2).sum(axis=1)
    return {"square": Term(squares.sum(), len(squares))}, Aux({}, state)

  def accumulates(self):
    return ""


@dataclasses.dataclass(frozen=True)
class Composed:
  """A part, then a number of its own."""

  inner: Scales | None
  other: Scales | None = None

  def init(self, rng):
    return {"params": {"own": jnp.ones(())}, "state": {}}

  def inputs(self):
    return self.inner.inputs()

  def scale(self, v, x):
    return v["params"]["own"] * self.inner.scale(systems.part(v, "inner"), x)

  def loss(self, variables, batch, rng, *, step, train, frozen):
    squares = ((self.scale(variables, batch["x"]) - batch["y"]) ** 2).sum(axis=1)
    return {"square": Term(squares.sum(), len(squares))}, Aux({}, variables["state"])

  def accumulates(self):
    return ""


class Numbers:
  """Records {"x": f32 [3], "y": f32 [1]}: `tests.train.toys.Numbers:COUNT`."""

  def __init__(self, place: str, split: str):
    rng = np.random.default_rng(len(split))
    self._x = rng.normal(size=(int(place), 3)).astype(np.float32)

  def __len__(self):
    return len(self._x)

  def __getitem__(self, index):
    x = self._x[index]
    return {"x": x, "y": x.sum(keepdims=True), "caption": str(index)}

  def name(self, index):
    return f"number {index}"

  def texts(self, fields):
    return (str(i) for i in range(len(self)))
