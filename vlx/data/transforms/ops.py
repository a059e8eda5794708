"""Ops, and the names under which a preprocessing string finds those of vlx."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from vlx.core.errors import UserError

Example = dict[str, Any]
# (example, rng) → example; rng is None in evaluation, where nothing is random.
Op = Callable[[Example, np.random.Generator | None], Example]
OPS: dict[str, Callable[..., Op]] = {}


def op(factory: Callable[..., Op]) -> Callable[..., Op]:
  """Makes `factory` an op under its own name."""
  OPS[factory.__name__] = factory
  return factory


def image_op(function: Callable[..., np.ndarray]) -> Callable[..., Op]:
  """An op from a function `(image, rng, *arguments) → image`.

  It is applied to the field `of`, "image" by default; of several images in a field ("images",
  "frames") to each, with the same draws for all: a film is cropped as one.
  """

  def factory(*args, of: str = "image", **kwargs) -> Op:
    def apply(example, rng):
      value = example[of]
      if not isinstance(value, (list, tuple)):
        return {**example, of: function(value, rng, *args, **kwargs)}
      return {**example, of: tuple(function(x, copy.deepcopy(rng), *args, **kwargs) for x in value)}

    return apply

  parameters = list(inspect.signature(function).parameters.values())[2:]
  extra = inspect.Parameter("of", inspect.Parameter.KEYWORD_ONLY, default="image")
  factory.__signature__ = inspect.Signature([*parameters, extra])
  factory.__name__, factory.__doc__ = function.__name__, function.__doc__
  op(factory)
  return factory


class NothingRandom:
  """Stands for the generator in evaluation: an op that draws from it says so."""

  def __getattr__(self, name: str):
    raise UserError(
      f"evaluation must be deterministic: leave the random op ({name}) out of data.image_transform and evaluators' ops"
    )


def is_random(rng: Any) -> bool:
  """Whether an op may draw: not in evaluation."""
  return not isinstance(rng, NothingRandom)
