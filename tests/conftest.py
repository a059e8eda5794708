"""Eight virtual devices; shapes and types in the rooms of array functions are checked as they run."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

from jaxtyping import install_import_hook

install_import_hook(["vlx.models", "vlx.losses", "vlx.evaluate.retrieval"], "beartype.beartype")

from absl import flags

from vlx import cli

flags.FLAGS.mark_as_parsed()  # Grain's worker processes ask for their flags

cli.use_compile_cache()
