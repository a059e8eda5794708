"""What the real compilers make of `nearest_code`, 32,768 rows × 8,192 codes × 256, f32, without the
hardware.

  python -m benchmarks.nearest_code

Prints the bytes of temporaries on a v5e and an h100, by XLA's plain argmin and by vlx, and on the
v5e the matrix unit's bundles: a tile's, from its first to its last matrix instruction, times the
tiles. `make test-all` installs the compilers.
"""

import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from absl import app

from vlx.compile import bundles, topologies

ROWS, CODES, DIM = 32768, 8192, 256
WAYS = ("plain", "l2", "cosine")
TOPOLOGIES = {"v5e": "v5e:2x2", "h100": "h100:1"}


def compile_for(chip: str, way: str) -> tuple[int, int | None]:
  """(bytes of temporaries, the v5e's matrix-unit bundles for all tiles), of one of `WAYS`."""
  topology = topologies.parse(TOPOLOGIES[chip])
  with tempfile.TemporaryDirectory() as dump:
    # The compilers read their flags once, so each program is a process of its own.
    environment = (
      os.environ
      | topologies.environment(topology)
      | {
        "LIBTPU_INIT_ARGS": bundles.DUMP_FLAGS.format(dump),
        "TPU_STDERR_LOG_LEVEL": "3",
        # XLA's own products by Triton, which this program compiles without a device: by cuBLAS they
        # bring a workspace of 4 MB, in all three ways.
        "XLA_FLAGS": "",
      }
    )
    call = f"nearest_code.report({topology.name!r}, {way!r})"
    child = subprocess.run(
      [sys.executable, "-c", f"from benchmarks import nearest_code; {call}"],
      env=environment,
      capture_output=True,
      text=True,
    )
    if child.returncode:
      raise RuntimeError(f"{call} failed:\n{child.stderr[-3000:]}")
    temporaries, text = json.loads(child.stdout.splitlines()[-1])
    return temporaries, _bundles(pathlib.Path(dump), text, way) if topology.is_tpu else None


def report(topology: str, way: str):
  """Prints the program's temporaries and its text, in a process that has the compiler."""
  import jax
  import jax.numpy as jnp
  from jax.sharding import SingleDeviceSharding

  from vlx.ops.nearest_code import nearest_code

  def plain(x, codebook):
    products = jnp.matmul(x, codebook.T, precision="highest")
    return jnp.argmin(jnp.sum(codebook**2, axis=1) - 2 * products, axis=1)

  find = plain if way == "plain" else lambda x, codebook: nearest_code(x, codebook, distance=way)
  one = SingleDeviceSharding(topologies.devices(topologies.parse(topology))[0])
  arrays = [jax.ShapeDtypeStruct((n, DIM), jnp.float32, sharding=one) for n in (ROWS, CODES)]
  compiled = jax.jit(find).lower(*arrays).compile()
  print(json.dumps([compiled.memory_analysis().temp_size_in_bytes, compiled.as_text()]))


def _bundles(dump, text: str, way: str) -> int:
  """Of the kernel that goes over all rows: a tile's bundles times the tiles."""
  if way == "plain":
    # XLA says into how many steps it cut the fusion that has the product.
    name, bounds = re.search(
      r'%(fusion[\w.]*) = [^\n]*kind=kOutput[^\n]*"iteration_bounds":\[([^\]]*)\]', text
    ).groups()
    tiles = math.prod(map(int, re.findall(r"\d+", bounds)))
  else:
    name, tiles = "nearest_code", (ROWS // 512) * (CODES // 512)
  (path,) = dump.glob(f"*-{name}*final_hlo-static-per-bundle-utilization.txt")
  return bundles.read(path).hot * tiles


def main(_):
  print("                 v5e temporaries   v5e matrix bundles   h100 temporaries")
  for way in WAYS:
    (v5e, matrix), (h100, _) = compile_for("v5e", way), compile_for("h100", way)
    name = "XLA, highest" if way == "plain" else f"vlx, {way}"
    print(f"{name:15} {v5e:12,} bytes {matrix:20,} {h100:12,} bytes", flush=True)


if __name__ == "__main__":
  app.run(main)
