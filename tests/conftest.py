"""Eight virtual devices; shapes and types in the rooms of array functions are checked as they
run.
"""

import gc
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys

# Tests compile much and compute little: by XLA's quickest ways to code they take half the time. XLA
# ends the process at a flag that it does not know; fusion emitters went with JAX 0.11.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if importlib.metadata.version("jax").startswith("0.10."):
  QUICK += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = (
  f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {QUICK}"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["VLX_TRUST"] = "tests"  # whose systems stand in folders that tests load

# Traces are many small objects, most in no cycle: looking for cycles among them every 700 is a
# tenth of the time.
gc.set_threshold(20_000, 10, 10)

import jax
import jaxtyping
import pytest

jaxtyping.install_import_hook(
  [
    "vlx.models",
    "vlx.losses.contrastive",
    "vlx.evaluate.tasks.retrieval",
    "vlx.ops.attention",
    "vlx.ops.nearest_code",
  ],
  "beartype.beartype",
)

from absl import flags

from vlx import cli

flags.FLAGS.mark_as_parsed()  # Grain's worker processes ask for their flags

cli.use_compile_cache()
# a run that goes on, and the other worker, need it again
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_collection_finish():
  """What is imported stays, and is not looked through again."""
  gc.collect()
  gc.freeze()


@pytest.fixture(scope="session")
def command():
  """command(module, flag, …) → (exit code, stdout, stderr), by a process that has imported JAX."""
  root = pathlib.Path(__file__).parents[1]
  process = subprocess.Popen(
    [sys.executable, root / "tests" / "forked.py"],
    env=os.environ | {"PYTHONPATH": str(root)},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )

  def run(*args):
    process.stdin.write(json.dumps(args) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())

  yield run
  process.stdin.close()
  process.wait()


@pytest.fixture
def unchecked(monkeypatch):
  """Shapes and types are not checked, as outside of tests: for what functions say of them
  themselves.
  """
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
