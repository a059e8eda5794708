"""The TPU kernels: simulated, races looked for, against attention's definition in float64; and
compiled.
"""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import (
  interpret_pallas_call,  # what it found is told nowhere else
)
from jax.experimental.pallas import tpu as pltpu

from benchmarks import kernels
from tests.ops.test_attention import TOLERANCES, assert_close, inputs, masks_of, truth
from vlx.compile import topologies
from vlx.ops import attention_schedule as schedules
from vlx.ops import attention_tpu, masks

SIMULATION = pltpu.InterpretParams(detect_races=True)
BLOCKS = (128, 128)


def values_and_gradients(arrays, mask, scale, blocks=BLOCKS, interpret=SIMULATION):
  """(out, lse, dq, dk, dv) of the kernels."""

  def run(q, k, v, d_out, d_lse, mask):
    out, lse = attention_tpu.forward(q, k, v, mask, scale, interpret=interpret, blocks=blocks)
    delta = jnp.einsum("bthd,bthd->bht", *(x.astype(jnp.float32) for x in (d_out, out))) - d_lse
    gradients = attention_tpu.backward(
      q, k, v, d_out, lse, delta, mask, scale, interpret=interpret, blocks=blocks
    )
    return out, lse, *gradients

  return jax.jit(run)(*arrays, mask)


def check(sizes, mask, dtype, blocks=BLOCKS, interpret=SIMULATION, scale=None):
  batch, length, keys_length, *_, head_dim = sizes
  arrays = inputs(*sizes, dtype)
  scale = scale or head_dim**-0.5
  actual = values_and_gradients(arrays, mask, scale, blocks, interpret)
  seen = np.broadcast_to(mask.dense(length, keys_length), (batch, length, keys_length))
  assert_close(actual, truth(*arrays, seen, scale), TOLERANCES[dtype])
  assert [x.dtype for x in actual] == [dtype, "float32", dtype, dtype, dtype]
  assert interpret is not SIMULATION or not interpret_pallas_call.races.races_found


@st.composite
def cases(draw):
  """(sizes, mask, dtype, blocks)."""
  batch, groups, share = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
  length, keys_length = draw(st.integers(1, 300)), draw(st.integers(1, 300))
  head_dim = draw(st.sampled_from((8, 40, 64, 80, 128)))
  blocks = draw(st.sampled_from((BLOCKS, BLOCKS, (256, 128), (128, 256))))
  mask = draw(masks_of(batch, length, keys_length))
  dtype = draw(st.sampled_from(sorted(TOLERANCES)))
  return (batch, length, keys_length, groups, share, head_dim), mask, dtype, blocks


# Compiling the simulation takes seconds for each shape; this, one.
@settings(max_examples=5, deadline=None, derandomize=True)
@given(cases())
def test_values_and_gradients(case):
  check(*case, interpret=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(cases())
def test_values_and_gradients_in_simulation(case):
  check(*case)


SEGMENTS = jnp.sort(jnp.asarray(np.random.default_rng(0).integers(0, 4, (2, 260))), axis=1)


def test_packed_queries_in_groups():
  """Tiles that the data leaves empty, rows that see nothing, partial tiles at the end, all in
  one.
  """
  check((2, 260, 260, 1, 2, 64), masks.Segments.of(SEGMENTS) & masks.Causal(), "float32")


def test_memory_beyond_the_last_position_is_not_read():
  """The simulation fills it with NaN."""
  check((1, 5, 3, 1, 1, 16), masks.Full(), "bfloat16")


def test_logits_far_apart():
  q, k, v, d_out, d_lse = inputs(1, 200, 200, 1, 1, 64)
  arrays = (300 * q, k, v, d_out, d_lse)
  actual = values_and_gradients(arrays, masks.Causal(), 0.125, interpret=True)
  assert all(np.isfinite(x).all() for x in actual)
  expected = truth(*arrays, np.asarray(masks.Causal().dense(200, 200)), 0.125)
  # Of weights e^s only the difference s - lse counts, and f32 holds a score of 1,000 to 1e-4.
  np.testing.assert_allclose(actual[0], expected[0], atol=1e-2)


def random_kinds():
  return (
    st.integers(0, 2**16)
    .map(lambda seed: np.random.default_rng(seed))
    .map(lambda rng: rng.integers(0, 3, rng.integers(1, 6, 2)).astype(np.int8))
  )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(random_kinds(), st.booleans())
def test_steps_are_the_tiles_that_hold_anything(kinds, by_keys):
  steps = schedules.steps(kinds, by_keys)
  busy = steps.flags & schedules.BUSY != 0
  visited = set(zip(steps.q_tiles[busy], steps.k_tiles[busy]))
  assert visited == set(zip(*np.nonzero(kinds))) and len(visited) == busy.sum()
  whole = steps.flags & schedules.WHOLE != 0
  np.testing.assert_array_equal(whole, kinds[steps.q_tiles, steps.k_tiles] == masks.FULL)
  # Every row (column, by keys) is one run of steps, from FIRST to LAST; an idle one is a row of
  # nothing.
  row = steps.k_tiles if by_keys else steps.q_tiles
  assert (np.diff(row) >= 0).all() and set(row) == set(range(kinds.shape[1 if by_keys else 0]))
  np.testing.assert_array_equal(steps.flags & schedules.FIRST != 0, np.diff(row, prepend=-1) != 0)
  np.testing.assert_array_equal(steps.flags & schedules.LAST != 0, np.diff(row, append=-1) != 0)
  empty = (kinds == masks.EMPTY).all(axis=0 if by_keys else 1).sum()
  assert len(steps) == busy.sum() + empty


def test_a_step_that_the_data_leaves_idle_loads_nothing():
  ids = jnp.repeat(jnp.array([[1, 2, 0, 3], [0, 0, 0, 0]]), 128, axis=1)
  mask = masks.Segments.of(ids)
  sizes = (512, 512, 128, 128)
  steps = schedules.steps(mask.tiles(*sizes))
  sources = np.asarray(schedules.sources(mask, steps, sizes))
  computes = sources == np.arange(len(steps))
  tiles = [(int(q), int(k)) for q, k in zip(steps.q_tiles[computes[0]], steps.k_tiles[computes[0]])]
  assert tiles == [(0, 0), (1, 1), (3, 3)] and not computes[1].any()
  assert (np.diff(sources[0]) >= 0).all() and set(sources[1]) == {-1}


@pytest.mark.parametrize(
  "mask",
  [
    masks.Row(64, 32),
    masks.Column(64, 32, 32),
    masks.Column(64, 32, 32, transposed=True),
    masks.Conv(64, 32, 11),
  ],
  ids=str,
)
def test_steps_of_dalles_masks_are_the_tiles_that_hold_a_visible_pair(mask):
  length, block = 64 + 32 * 32, 128
  seen = np.pad(np.asarray(mask.dense(length, length))[0], (0, -length % block))
  tiles = seen.reshape(-(-length // block), block, -1, block).any(axis=(1, 3))
  for by_keys in (False, True):
    assert len(schedules.steps(mask.tiles(length, length, block, block), by_keys)) == tiles.sum()


@pytest.mark.parametrize(
  "length, block",
  [
    (1, 128),
    (77, 128),
    (128, 128),
    (197, 256),
    (257, 384),
    (577, 640),
    (1024, 512),
    (1280, 640),
    (4096, 512),
  ],
)
def test_blocks_pad_little(length, block):
  assert schedules.block_size(length, head_bytes=256) == block


def compile_for(name, cases):
  """Bytes of temporaries, by case, of forward and gradients; the compiler runs in a process of
  its own.
  """
  topology = topologies.parse(name)
  child = subprocess.run(
    [sys.executable, "-c", CHILD.format(name=name, cases=cases)],
    env=os.environ | topologies.environment(topology),
    capture_output=True,
    text=True,
  )
  assert child.returncode == 0, child.stderr[-3000:]
  return [
    int(line.split()[1]) for line in child.stdout.splitlines() if line.startswith("temporaries")
  ]


CHILD = """
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from vlx.compile import topologies
from vlx.ops import attention_tpu, masks
sharding = SingleDeviceSharding(topologies.devices(topologies.parse({name!r}))[0])

def run(q, k, v, d_out, ids, mask):
  mask = eval(mask)(ids)
  out, lse = attention_tpu.forward(q, k, v, mask, 0.1)
  delta = jnp.einsum("bthd,bthd->bht", d_out.astype(jnp.float32), out.astype(jnp.float32))
  return out, attention_tpu.backward(q, k, v, d_out, lse, delta, mask, 0.1)

for (batch, length, heads, kv_heads, head_dim), dtype, mask in {cases!r}:
  shape = lambda *sizes, dtype=dtype: jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)
  q, k = shape(batch, length, heads, head_dim), shape(batch, length, kv_heads, head_dim)
  ids = shape(batch, length, dtype="int32")
  compiled = jax.jit(run, static_argnums=5).lower(q, k, k, q, ids, mask).compile()
  print("temporaries", compiled.memory_analysis().temp_size_in_bytes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_compiled_for_a_tpu_it_needs_no_memory_beyond_row_statistics(name):
  batch, length, heads, head_dim = 8, 1280, 16, 64
  (temporaries,) = compile_for(
    name, [((batch, length, heads, heads, head_dim), "bfloat16", "lambda ids: masks.Causal()")]
  )
  assert temporaries <= 2 * 4 * batch * heads * length  # lse and delta, f32; dense XLA: 1,259 MB


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v4:2x2x1", "v6e:2x2"])
def test_every_kind_of_operand_compiles(name):
  packed = "lambda ids: masks.Segments.of(ids) & masks.Causal()"
  compile_for(
    name,
    [
      ((2, 1280, 2, 2, 64), "float32", packed),
      ((2, 1280, 2, 2, 256), "float32", "lambda ids: masks.Causal()"),
      ((2, 1280, 2, 2, 256), "bfloat16", packed),
      ((2, 577, 4, 4, 80), "bfloat16", "lambda ids: masks.Full()"),
      ((2, 1088, 4, 4, 96), "bfloat16", "lambda ids: masks.Conv(64, 32, 11)"),
      ((2, 300, 6, 2, 40), "bfloat16", "lambda ids: masks.KeyPadding(ids) | masks.Window(3, 4)"),
      ((2, 77, 4, 1, 128), "bfloat16", "lambda ids: masks.KeyPadding(ids) & masks.Causal()"),
    ],
  )


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("chip", ["v4", "v5e", "v5p", "v6e"])
def test_bundles_are_at_or_below_those_of_splash_attention(chip, head_dim):
  figures = kernels.measure(chip, head_dim)
  assert all(ours.hot <= splash.hot for ours, splash in figures.values()), figures
