"""What the real compilers make of `nearest_code`, 32,768 rows × 8,192 codes × 256, f32, without the hardware.

  PYTHONPATH=.venv/compilers python -m benchmarks.nearest_code

Prints the bytes of temporaries on a v5e and an h100, by XLA's plain argmin and by vlx, and on the v5e the matrix
unit's bundles: a tile's, from its first to its last matrix instruction, times the tiles. `make .venv/compilers`
installs the compilers.
"""

import glob
import json
import os
import re
import subprocess
import sys
import tempfile

from absl import app

ROWS, CODES, DIM = 32768, 8192, 256
WAYS = ("plain", "l2", "cosine")

# libtpu and XLA read their flags once: each compilation is a process of its own.
_CHILD = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from vlx.ops.nearest_code import nearest_code

platform, way, rows, codes, dim, target = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]), sys.argv[6]
if platform == "v5e":
  description = topologies.get_topology_desc("v5e:2x2", platform="tpu")
else:
  description = topologies.get_topology_desc(
      platform, platform="cuda", target_config=open(target).read(), topology="1x1x1")
one = NamedSharding(Mesh(np.array(description.devices[:1]), ("device",)), P())

def plain(x, c):
  return jnp.argmin((c * c).sum(1) - 2 * jnp.matmul(x, c.T, precision="highest"), axis=1)

find = plain if way == "plain" else lambda x, c: nearest_code(x, c, distance=way)
arrays = [jax.ShapeDtypeStruct((n, dim), jnp.float32, sharding=one) for n in (rows, codes)]
compiled = jax.jit(find).lower(*arrays).compile()
print("RESULT" + json.dumps([compiled.memory_analysis().temp_size_in_bytes, compiled.as_text()]))
"""


def compile_for(platform: str, way: str, target: str = "") -> tuple[int, int | None]:
  """(bytes of temporaries, the v5e's matrix-unit bundles for all tiles).

  Args:
    platform: "v5e" or "h100".
    way: one of `WAYS`.
    target: file with XLA's description of the GPU.
  """
  with tempfile.TemporaryDirectory() as dump:
    env = dict(
        os.environ, TPU_SKIP_MDS_QUERY="1", JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1", TPU_STDERR_LOG_LEVEL="3",
        JAX_PLATFORMS="cpu" if platform == "v5e" else "cpu,cuda",
        LIBTPU_INIT_ARGS=f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true",
    )
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, platform, way, *map(str, (ROWS, CODES, DIM)), target],
        env=env, capture_output=True, text=True, check=False,
    )
    result = [line for line in child.stdout.splitlines() if line.startswith("RESULT")]
    if not result:
      raise RuntimeError(f"{way} does not compile for {platform}: {child.stderr[-2000:]}")
    temporaries, text = json.loads(result[0].removeprefix("RESULT"))
    return temporaries, _bundles(dump, text, way) if platform == "v5e" else None


def _bundles(dump: str, text: str, way: str) -> int:
  """Of the kernel that goes over all rows: a tile's bundles times the tiles."""
  if way == "plain":
    # XLA says into how many steps it cut the fusion that has the product.
    name, bounds = re.search(r'%(fusion[\w.]*) = [^\n]*kind=kOutput[^\n]*"iteration_bounds":\[([^\]]*)\]', text).groups()
    tiles = 1
    for bound in re.findall(r"\d+", bounds):
      tiles *= int(bound)
  else:
    name, tiles = "nearest_code", (ROWS // 512) * (CODES // 512)
  (path,) = glob.glob(f"{dump}/*-{name}*final_hlo-static-per-bundle-utilization.txt")
  with open(path) as file:
    rows = file.read().split("== UTIL")[-1].splitlines()
  matrix = [int(row.split()[0]) for row in rows if re.fullmatch(r"[\d\s]+", row) and row.strip()]
  used = [i for i, slots in enumerate(matrix) if slots]
  return (used[-1] - used[0] + 1) * tiles


def main(argv):
  target = argv[1] if len(argv) > 1 else _target()
  print("                 v5e temporaries   v5e matrix bundles   h100 temporaries")
  for way in WAYS:
    (v5e, bundles), (h100, _) = compile_for("v5e", way), compile_for("h100", way, target)
    name = "XLA, highest" if way == "plain" else f"vlx, {way}"
    print(f"{name:15} {v5e:12,} bytes {bundles:20,} {h100:12,} bytes")


def _target() -> str:
  """The description of an h100 that ships with vlx."""
  (path,) = glob.glob(os.path.join(os.path.dirname(__file__), "..", "vlx", "compile", "**", "h100*"), recursive=True)
  return path


if __name__ == "__main__":
  app.run(main)
