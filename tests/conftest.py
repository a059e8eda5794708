"""Eight virtual devices; shapes and types of every annotated function of vlx checked as it runs."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

from jaxtyping import install_import_hook

install_import_hook("vlx", "beartype.beartype")

import jax
import pytest

from vlx import cli

cli.use_compile_cache()


@pytest.fixture
def mesh8():
  """All eight devices along `data` and `fsdp`, set as the current mesh."""
  from vlx.train import partition

  mesh = partition.make_mesh(dict(data=4, fsdp=2, tensor=1))
  with jax.set_mesh(mesh):
    yield mesh
