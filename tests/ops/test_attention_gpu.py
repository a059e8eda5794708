"""The GPU's kernels, interpreted, against attention's definition in float64; compiled for an
H100 (slow).
"""

import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from tests.ops.test_attention import cases, check
from vlx.ops import masks
from vlx.ops.attention_gpu import _plan, _Tile
from vlx.ops.masks import EMPTY, FULL

ROOT = pathlib.Path(__file__).parents[2]


def packed(length, seed=0):
  return jnp.asarray(np.sort(np.random.default_rng(seed).integers(0, 4, (2, length)), axis=1))


# (batch, length, keys, groups, heads of a group, head_dim): several tiles, the last of them not full.
CASES = [
  ((1, 150, 70, 1, 1, 20), masks.Full(), None, "float32"),
  ((1, 130, 130, 2, 3, 16), masks.Causal(-2), 0.3, "bfloat16"),  # two queries see nothing
  # Tiles that only the data empties; padding, that neither sees nor is seen.
  (
    (2, 70, 100, 1, 2, 16),
    masks.Segments(packed(70), packed(100, 1)) & masks.Window(60, 20),
    None,
    "float32",
  ),
  (
    (2, 40, 200, 1, 1, 80),
    masks.Conv(3, 6, 3) | masks.KeyPadding(packed(200) % 2),
    None,
    "bfloat16",
  ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{type(case[1]).__name__}-{case[3]}")
def test_values_and_gradients(case):
  check(case, "pallas_gpu")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases(longest=200, head_dims=(8, 40, 64, 80, 128)))
def test_values_and_gradients_at_random(case):
  check(case, "pallas_gpu")


@pytest.mark.parametrize(
  "mask",
  [
    masks.Full(),
    masks.Causal(),
    masks.Conv(9, 8, 3),
    masks.Segments.of(packed(70)) & masks.Causal(),
    masks.Segments.of(packed(70)) | masks.Window(8),
  ],
  ids=lambda mask: type(mask).__name__,
)
@pytest.mark.parametrize("by_keys", [False, True])
def test_plan_holds_each_tile_that_is_seen_once(mask, by_keys):
  kinds = mask.tiles(70, 70, 16, 8)
  plan = np.asarray(_plan(kinds, mask, 70, 70, _Tile(16, 8, 4), by_keys))
  may = np.broadcast_to(mask.may_see(70, 70, 16, 8), (len(plan), *kinds.shape)) & (kinds != EMPTY)
  if by_keys:
    kinds, may = kinds.T, may.swapaxes(1, 2)
  for rows, may_see in zip(plan, may):
    assert sorted(rows[:, 0]) == list(range(len(kinds)))
    for own, whole, all_, *tiles in rows:
      assert sorted(tiles[:all_]) == list(np.nonzero(may_see[own])[0])
      assert sorted(tiles[:whole]) == list(np.nonzero(kinds[own] == FULL)[0])


def test_longest_programs_start_first():
  mask = masks.Causal()
  plan = _plan(mask.tiles(64, 64, 16, 16), mask, 64, 64, _Tile(16, 16, 4), by_keys=False)
  assert list(plan[0, :, 0]) == [3, 2, 1, 0] and list(plan[0, :, 2]) == [4, 3, 2, 1]


COMPILE = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from vlx.ops import masks
from vlx.ops.attention import attention
from vlx.ops.masks import *

topology = topologies.get_topology_desc(
    "h100", platform="cuda", target_config=open("vlx/compile/h100.txtpb").read(), topology="1x1x1"
)
everywhere = NamedSharding(Mesh(np.array(topology.devices), ("data",)), P())
ids = jnp.tile(jnp.sort(jnp.arange(1088) % 5), (2, 1))
for sizes, groups, dtype, mask in json.load(sys.stdin):
  batch, length, heads, head_dim = sizes
  of = lambda *shape, dtype=dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)
  q, k = of(*sizes), of(batch, length, groups, head_dim)
  mask = eval(mask)
  def gradients(q, k, v, d_out, mask):
    return jax.vjp(lambda *x: attention(*x, mask=mask), q, k, v)[1](d_out)
  abstract = jax.tree.map(lambda x: of(*x.shape, dtype=x.dtype), mask)
  compiled = jax.jit(gradients).lower(q, k, k, q, abstract).compile()
  print(compiled.memory_analysis().temp_size_in_bytes)
"""


def temporaries(cases, flags=""):
  """Bytes, for each of (sizes, groups, type, mask) as attention and its gradients compile for an
  H100.
  """
  compilers = ROOT / ".venv/compilers"
  assert compilers.is_dir(), "no .venv/compilers; make test-all installs them"
  environment = os.environ | {
    "PYTHONPATH": f"{compilers}{os.pathsep}{ROOT}",
    "JAX_PLATFORMS": "cpu,cuda",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "XLA_FLAGS": flags,
  }
  run = subprocess.run(
    [sys.executable, "-c", COMPILE],
    input=json.dumps(cases),
    env=environment,
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert run.returncode == 0, run.stderr[-2000:]
  return [int(line) for line in run.stdout.split()]


@pytest.mark.slow
def test_no_temporaries_but_statistics_of_rows():
  [size] = temporaries([((8, 1280, 16, 64), 16, "bfloat16", "Causal()")])
  # the log-sum-exp and delta, f32; dense XLA: 2,539 MB
  assert size <= 2 * 8 * 1280 * 16 * 4 + 10_000


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
def test_compiles(head_dim, dtype, tmp_path):
  flags = f"--xla_dump_to={tmp_path}"
  [size] = temporaries([((2, 300, 4, head_dim), 2, dtype, "Causal() & Keys(290)")], flags)
  assert size <= 2 * 2 * 300 * 4 * 4 + 10_000
  programs = [
    text for file in tmp_path.glob("*.ptx") if ".entry attention_" in (text := file.read_text())
  ]
  assert len(programs) == 3
  for text in programs:
    # The matrix units take f32 only as tf32.
    assert ("mma" in text) == (dtype == "bfloat16") and "tf32" not in text


@pytest.mark.slow
def test_masks_of_every_kind_compile():
  every = [
    "Full()",
    "PrefixCausal(70)",
    "Window(100, 3)",
    "Keys(900)",
    "Row(64, 32)",
    "Column(64, 32, 32)",
    "Column(64, 32, 32, True)",
    "Conv(64, 32, 11)",
    "Segments.of(ids) & Causal()",
    "KeyPadding(ids) | Window(3)",
    "Segments.per_image(ids == 2, 8, 136)",
  ]
  assert len(temporaries([((2, 1088, 4, 64), 2, "bfloat16", mask) for mask in every])) == len(every)
