"""The mesh axes that array functions know."""

import jax
from jax.sharding import PartitionSpec as P

BATCH_AXES = ("data", "fsdp")  # over both a batch is split
HEAD_AXIS = "tensor"  # over it, heads and the width of hidden layers


def split_batch(x: jax.Array) -> jax.Array:
  """x, its leading axis split over the devices as the batch is; x itself where no mesh is set.

  For the body of a scanned layer: there XLA may choose to follow the parameters' split over `fsdp`
  instead, and gather the whole batch on every device.
  """
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(a for a in BATCH_AXES if a in mesh.axis_names and a not in mesh.manual_axes)
  return jax.lax.with_sharding_constraint(x, P(axes)) if axes else x
