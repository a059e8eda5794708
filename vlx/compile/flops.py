"""Model FLOPs of a training step, counted in the traced loss: what MFU is measured against.

Counted are matrix products (`dot_general`), convolutions and Pallas kernels, a multiplication and
an addition as two; nothing elementwise. Each counts once for the loss, and once more for each of
its two operands that depends on a trained parameter: the backward product that takes the gradient
to that operand. So a hidden layer counts three times, the first layer twice (no gradient to
images), a frozen one ahead of all that is trained once. What rematerialisation computes again is
not counted.

Loops count with their length. Of the branches of a `cond` the most expensive counts; of
implementations that depend on the platform, one without kernels where there is one: attention then
counts as dense, masks or not. Another kernel counts what its author declared (`cost_estimate`),
else the products of its body at every point of its grid; thrice where anything that goes in depends
on a trained parameter.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.interpreters import partial_eval


@dataclasses.dataclass
class Count:
  """The work of one training step, on all devices together.

  Attributes:
    flops: see the module.
    kernels: FLOPs among them that are of Pallas kernels, by the kernel's name.
    unbounded_loops: `while` loops whose length the program does not say, counted as one turn.
    has_kernels: whether there are any, in branches that do not count too.
  """

  flops: int = 0
  kernels: dict[str, int] = dataclasses.field(default_factory=dict)
  unbounded_loops: int = 0
  has_kernels: bool = False

  def add(self, other: "Count", times: int = 1) -> None:
    self.flops += times * other.flops
    self.unbounded_loops += other.unbounded_loops
    self.has_kernels |= other.has_kernels
    for name, flops in other.kernels.items():
      self.kernels[name] = self.kernels.get(name, 0) + times * flops


def count(loss: Callable[..., Any], params: Any, *rest: Any) -> Count:
  """FLOPs of `loss(params, *rest)` and of its gradient to `params`; arguments may be shapes."""
  closed = jax.make_jaxpr(loss)(params, *rest)
  jaxpr, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
  of_params = len(jax.tree.leaves(params))
  active = [i < of_params for i, u in enumerate(used) if u]
  return _walk(jaxpr, active)[0]


def _walk(jaxpr: Jaxpr, active: list[bool]) -> tuple[Count, list[bool]]:
  """(FLOPs, which results depend on active inputs), given which inputs do."""
  total = Count()
  depends = dict(zip(jaxpr.invars, active, strict=True))

  def of(variables):
    return [not isinstance(v, Literal) and depends.get(v, False) for v in variables]

  for equation in jaxpr.eqns:
    counted, out = _equation(equation, of(equation.invars))
    total.add(counted)
    for variable, is_active in zip(equation.outvars, out, strict=True):
      depends[variable] = is_active and jax.dtypes.issubdtype(variable.aval.dtype, np.inexact)
  return total, of(jaxpr.outvars)


def _equation(equation, active: list[bool]) -> tuple[Count, list[bool]]:
  name, params = equation.primitive.name, equation.params
  same = [any(active)] * len(equation.outvars)
  if name == "stop_gradient":
    return Count(), [False]
  if name in _PRODUCTS:
    return Count(_PRODUCTS[name](equation) * (1 + sum(active))), same
  if name == "scan":
    return _scan(equation, active)
  if name == "while":
    return _while(equation, active)
  if name == "cond":
    walked = [_walk(branch.jaxpr, active[1:]) for branch in params["branches"]]
    counts = [counted for counted, _ in walked]
    # Tiles of a kernel hold padding; the same by plain products does not.
    plain = [c for c in counts if not c.has_kernels] if "branches_platforms" in params else []
    most = max(plain or counts, key=lambda c: c.flops)
    most.has_kernels = any(c.has_kernels for c in counts)
    return most, [any(outs) for outs in zip(*(out for _, out in walked))]
  if name == "pallas_call":
    return _kernel(equation, any(active)), same
  for inner in params.values():
    inner = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
    if isinstance(inner, Jaxpr) and len(inner.invars) == len(active):
      return _walk(inner, active)
  return Count(), same


def _dot(equation) -> int:
  (contracted, _), _ = equation.params["dimension_numbers"]
  lhs = equation.invars[0].aval.shape
  return 2 * _size(equation.outvars[0]) * math.prod(lhs[i] for i in contracted)


def _convolution(equation) -> int:
  kernel, params = equation.invars[1].aval.shape, equation.params
  channels = kernel[params["dimension_numbers"].rhs_spec[0]]
  products = _size(equation.outvars[0]) * math.prod(kernel) // channels
  # without the zeros between dilated inputs
  return 2 * products // math.prod(params["lhs_dilation"])


_PRODUCTS = {"dot_general": _dot, "conv_general_dilated": _convolution}


def _size(variable) -> int:
  return math.prod(variable.aval.shape)


def _scan(equation, active):
  params = equation.params
  body = params["jaxpr"].jaxpr
  # What has an axis more outside than inside is scanned over, or stacked; the rest are constants and carries.
  same = lambda outer, inner: sum(a.aval.ndim == b.aval.ndim for a, b in zip(outer, inner))
  carries = same(equation.outvars, body.outvars)
  consts = same(equation.invars, body.invars) - carries
  while True:
    counted, out = _walk(body, active)
    carried = [a or b for a, b in zip(active[consts : consts + carries], out)]
    if carried == active[consts : consts + carries]:
      break
    active = [*active[:consts], *carried, *active[consts + carries :]]
  total = Count()
  total.add(counted, params["length"])
  return total, out


def _while(equation, active):
  params = equation.params
  consts = params["cond_nconsts"]
  active = active[consts:]  # those of the condition come first
  first = params["body_nconsts"]
  while True:
    counted, out = _walk(params["body_jaxpr"].jaxpr, active)
    carried = [a or b for a, b in zip(active[first:], out)]
    if carried == active[first:]:
      break
    active = [*active[:first], *carried]
  counted.unbounded_loops += bool(counted.flops)
  return counted, out


def _kernel(equation, active: bool) -> Count:
  params = equation.params
  if params["cost_estimate"] is not None:
    flops = int(params["cost_estimate"].flops)
  else:
    turns = math.prod(n for n in params["grid_mapping"].grid if isinstance(n, int))
    flops = turns * _walk(params["jaxpr"], [False] * len(params["jaxpr"].invars))[0].flops
  flops *= 3 if active else 1
  return Count(flops, {str(params["name"]): flops}, has_kernels=True)
