"""Which device holds what: meshes, and rules from parameter names to axes.

A rule is (pattern, value); the pattern is a regular expression that must match somewhere in a
parameter's name, "image/transformer/blocks/mlp/fc1/kernel". First match wins. Every parameter must
match, and a pattern that no parameter reaches is an error: it is a typing mistake.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vlx.core.errors import UserError
from vlx.core.system import flatten, names
from vlx.ops.axes import BATCH_AXES

Rules = Sequence[tuple[str, Any]]


def match(rules: Rules, params: Any, what: str) -> Any:
  """For each parameter, the index of the first rule whose pattern its name matches.

  Raises:
    UserError: naming the parameters without a rule and the patterns without a parameter.
  """
  used = set()

  def first(name):
    for i, (pattern, _) in enumerate(rules):
      if re.search(pattern, name):
        used.add(i)
        return i
    return None

  matched = jax.tree.map(first, names(params))
  missing = [
    n
    for n, i in zip(
      jax.tree.leaves(names(params)), jax.tree.leaves(matched, is_leaf=lambda i: i is None)
    )
    if i is None
  ]
  if missing:
    raise UserError(f"no {what} rule matches {len(missing)} parameters, e.g. {missing[0]}")
  if idle := [pattern for i, (pattern, _) in enumerate(rules) if i not in used]:
    raise UserError(f"{what} rules that match no parameter: {', '.join(map(repr, idle))}")
  return matched


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh with axes `data`, `fsdp`, `tensor`; one size may be -1: all the devices that are
  left.
  """
  devices = jax.devices() if devices is None else devices
  sizes = dict(sizes)
  known = int(np.prod([n for n in sizes.values() if n != -1]))
  wild = [axis for axis, n in sizes.items() if n == -1]
  if len(wild) > 1 or len(devices) % known or (not wild and known != len(devices)):
    raise UserError(f"a mesh of {sizes} does not fit {len(devices)} devices")
  for axis in wild:
    sizes[axis] = len(devices) // known
  grid = mesh_utils.create_device_mesh(
    tuple(sizes.values()), devices, allow_split_physical_axes=True
  )
  return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The leading axis over all data-parallel devices."""
  return NamedSharding(mesh, P(tuple(a for a in BATCH_AXES if a in mesh.axis_names)))


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
  """The rows of a global batch that this process's devices hold, ascending.

  Processes that share a batch shard (a `tensor` axis across them) hold the same rows.
  """
  slices = sharding.addressable_devices_indices_map((batch_size,)).values()
  return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))


def make_global_array(own: np.ndarray, sharding: NamedSharding, batch_size: int) -> jax.Array:
  """A global array `[batch_size, …]` from this process's rows of it (`local_rows`)."""
  rows = local_rows(sharding, batch_size)

  def of_device(index):
    start, stop, _ = index[0].indices(batch_size)
    first = np.searchsorted(rows, start)
    return own[first : first + stop - start]

  return jax.make_array_from_callback((batch_size, *own.shape[1:]), sharding, of_device)


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def shardings(rules: Rules, params: Any, mesh: Mesh) -> Any:
  """Shardings of parameters (or their shapes) by the rules.

  A rule's value has an axis of the mesh, or None, for each axis of the array; or is "fsdp": the
  largest axis of a parameter that `fsdp` divides (`largest_axis`).

  Raises:
    UserError: where a rule fits no parameter, a parameter no rule, or the mesh does not divide what
      a rule splits.
  """
  matched = flatten(match(rules, params, "partition"))

  def sharding(name, leaf):
    value = rules[matched[name]][1]
    spec = largest_axis(name, leaf.shape, mesh) if value == "fsdp" else P(*value)
    found = NamedSharding(mesh, spec)
    try:
      found.shard_shape(leaf.shape)
    except ValueError as e:
      raise UserError(
        f"the mesh {dict(mesh.shape)} does not divide {name} {list(leaf.shape)}, which its partition rule"
        f" splits by {spec}"
      ) from e
    return found

  return jax.tree.map(sharding, names(params), params)


# numbers; below, a parameter is on every device: to gather it would cost more than it saves
SMALL = 2**14


def largest_axis(name: str, shape: Sequence[int], mesh: Mesh) -> P:
  """The largest axis that the mesh's `fsdp` divides, over it; never the depth of scanned layers
  ("blocks/…").
  """
  scanned = "blocks" in name.split("/")
  axes = [i for i, n in enumerate(shape) if not n % mesh.shape["fsdp"] and not (scanned and i == 0)]
  if not axes or np.prod(shape) < SMALL:
    return P()
  largest = max(axes, key=lambda i: shape[i])
  return P(*("fsdp" if i == largest else None for i in range(len(shape))))
