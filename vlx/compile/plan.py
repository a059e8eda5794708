"""A run on devices that are not here, of data that is not here: what `vlx.train` would compile,
as shapes.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import ml_collections

from vlx.core import partition
from vlx.train import initialize
from vlx.train.run import Run


@dataclasses.dataclass(frozen=True)
class Plan(Run):
  """Needs no folder, data or tokenizer: the system says what it takes."""

  devices: Sequence[jax.Device] = ()

  @functools.cached_property
  def config(self) -> ml_collections.ConfigDict:
    return initialize.resolve(self.requested)

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    return partition.make_mesh(self.config.mesh, self.devices)
