"""Nearest codes against float64, however they are computed; gradients past them; statistics of
codes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import nearest_code as benchmark
from vlx.core import partition
from vlx.ops import nearest_code_gpu, nearest_code_tpu, nearest_code_xla
from vlx.ops.nearest_code import code_statistics, nearest_code, straight_through

SIMULATION = pltpu.InterpretParams(detect_races=True)
CANDIDATES = {
  "xla": jax.jit(nearest_code_xla.candidates, static_argnums=4),
  "tpu": jax.jit(
    functools.partial(nearest_code_tpu.candidates, interpret=SIMULATION), static_argnums=4
  ),
  "gpu": jax.jit(functools.partial(nearest_code_gpu.candidates, interpret=True), static_argnums=4),
}
# One program each, where eager operations are many.
FIND = {d: jax.jit(functools.partial(nearest_code, distance=d)) for d in ("l2", "cosine")}


def distances(x, codebook, distance):
  """float64 `[n, codes]`, l2 from differences: no cancellation."""
  x, codebook = np.asarray(x, np.float64), np.asarray(codebook, np.float64)
  if distance == "l2":
    return np.stack([((codebook - row) ** 2).sum(1) for row in x])
  norm = lambda a: a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-300)
  return 1 - norm(x) @ norm(codebook).T


def assert_nearest(ids, x, codebook, distance="l2"):
  """To 1e-9 relative: float64 by products is no better for cosines of nearly parallel vectors."""
  ids = np.asarray(ids)
  assert ids.dtype == np.int32 and ids.shape == x.shape[:-1]
  all_distances = distances(x, codebook, distance)
  found = np.take_along_axis(all_distances, ids[:, None], 1)[:, 0]
  least = all_distances.min(1)
  assert (found <= least * (1 + 1e-9) + 1e-14 * (distance == "cosine")).all()


def vectors(rows, codes, dim, kind, seed=0):
  """Rows and codes with what makes the choice hard."""
  rng = np.random.default_rng(seed)
  codebook, x = rng.normal(size=(codes, dim)), rng.normal(size=(rows, dim))
  if kind == "near the codes":
    x = codebook[rng.integers(0, codes, rows)] + 0.05 * x
  if kind == "near-duplicates":
    codebook[codes // 2 :] = codebook[: codes - codes // 2] * (
      1 + 1e-6 * rng.normal(size=(codes - codes // 2, dim))
    )
    x = codebook[rng.integers(0, codes, rows)] + 0.01 * x
  if kind == "far from the origin":
    x, codebook = x + 1000, codebook + 1000
  if kind == "duplicates":
    codebook = codebook[rng.integers(0, (codes + 1) // 2, codes)]
  return x.astype(np.float32), codebook.astype(np.float32)


KINDS = ["random", "near the codes", "near-duplicates", "far from the origin", "duplicates"]


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
  st.integers(1, 70),
  st.integers(1, 300),
  st.integers(1, 40),
  st.sampled_from(KINDS),
  st.sampled_from(["l2", "cosine"]),
)
def test_nearest_for_any_shape(rows, codes, dim, kind, distance):
  x, codebook = vectors(rows, codes, dim, kind)
  assert_nearest(FIND[distance](x, codebook), x, codebook, distance)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("implementation", ["reference", "xla", "pallas_tpu", "pallas_gpu"])
def test_every_implementation_is_exact(implementation, distance):
  find = jax.jit(
    lambda x, codebook: nearest_code(x, codebook, distance=distance, implementation=implementation)
  )
  for kind in KINDS:
    x, codebook = vectors(40, 530, 33, kind)
    assert_nearest(find(x, codebook), x, codebook, distance)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
@pytest.mark.parametrize("way", CANDIDATES)
@pytest.mark.parametrize("rows, codes, dim", [(600, 1025, 20), (65, 530, 256)])
def test_what_the_scores_settle_is_right(way, distance, rows, codes, dim):
  """No row is left settled on a code that is not the nearest, and few are left open."""
  x, codebook = vectors(rows, codes, dim, "random")
  cosine = distance == "cosine"
  center, radius = nearest_code_xla.center_and_radius(codebook, cosine)
  ids, limits = CANDIDATES[way](jnp.asarray(x), jnp.asarray(codebook), center, radius, cosine)
  settled = np.asarray(limits) == -np.inf
  assert settled.mean() > 0.9
  assert_nearest(np.asarray(ids)[settled], x[settled], codebook, distance)


@pytest.mark.parametrize("implementation", ["reference", "xla", "pallas_tpu", "pallas_gpu"])
def test_of_equal_codes_the_lowest_id(implementation):
  x, codebook = vectors(40, 300, 8, "duplicates")
  first = np.array([np.flatnonzero((codebook == code).all(1))[0] for code in codebook])
  find = jax.jit(
    functools.partial(nearest_code, implementation=implementation), static_argnames="distance"
  )
  ids = np.asarray(find(x, codebook))
  np.testing.assert_array_equal(ids, first[ids])
  same = np.tile(codebook[:1], (300, 1))
  for distance in ("l2", "cosine"):
    assert not np.any(find(x, same, distance=distance))


def test_as_near_in_another_order_of_terms_is_a_tie():
  x, codes = (
    np.zeros((1, 7), np.float32),
    np.random.default_rng(0).normal(size=(1, 7)).astype(np.float32),
  )
  assert FIND["l2"](x, np.concatenate([codes[:, ::-1], codes, -codes]))[0] == 0
  assert FIND["cosine"](codes, np.concatenate([3 * codes, codes, 5 * codes]))[0] == 0


def test_zero_vectors_by_cosine_are_at_distance_one():
  codebook = np.float32([[-1, 0], [0, 0], [0.5, 1e-3]])
  x = np.float32([[0, 0], [1, 0], [-1, 0], [-1, -9]])
  find = FIND["cosine"]
  np.testing.assert_array_equal(find(x, codebook), [0, 2, 0, 0])
  assert find(np.float32([[1, 0]]), codebook[:2])[0] == 1


def test_bf16_values_as_they_stand():
  x, codebook = (jnp.asarray(a, jnp.bfloat16) for a in vectors(64, 200, 16, "random"))
  for implementation in ("xla", "pallas_tpu", "pallas_gpu"):
    find = jax.jit(lambda x, codebook: nearest_code(x, codebook, implementation=implementation))
    assert_nearest(find(x, codebook), x, codebook)


def test_twenty_thousand_rows():
  _many(20_000, "auto")


@pytest.mark.slow
@pytest.mark.parametrize(
  "total, implementation", [(1_000_000, "auto"), (100_000, "pallas_tpu"), (100_000, "pallas_gpu")]
)
def test_many_rows(total, implementation):
  _many(total, implementation)


def _many(total, implementation):
  """Codes once, duplicated and nearly duplicated; the true distances by float64 products."""
  rng = np.random.default_rng(0)
  codes = rng.normal(size=(171, 16))
  codebook = np.concatenate([codes, codes, codes + 1e-5 * rng.normal(size=codes.shape)]).astype(
    np.float32
  )
  exact = codebook.astype(np.float64)
  find = jax.jit(functools.partial(nearest_code, implementation=implementation))
  at_once = min(total, 50_000)
  for start in range(0, total, at_once):
    x = np.random.default_rng([1, start]).normal(size=(at_once, 16)).astype(np.float32)
    ids = np.asarray(find(x, codebook))
    rows = x.astype(np.float64)
    all_distances = (exact**2).sum(1) - 2 * rows @ exact.T + (rows**2).sum(1)[:, None]
    least = all_distances.min(1)
    found = ((rows - exact[ids]) ** 2).sum(1)
    assert (found <= least * (1 + 1e-9) + 1e-12).all()  # 1e-12: what products in float64 are off by
    assert not ((ids >= 171) & (ids < 342)).any()


def test_transformations():
  find = FIND["l2"]
  x, codebook = vectors(12, 20, 5, "random")
  expected = np.asarray(find(x, codebook))
  np.testing.assert_array_equal(find(x.reshape(3, 4, 5), codebook), expected.reshape(3, 4))
  np.testing.assert_array_equal(
    jax.jit(jax.vmap(find, (0, None)))(x.reshape(3, 4, 5), codebook), expected.reshape(3, 4)
  )
  books = np.stack([codebook, codebook[::-1]])
  np.testing.assert_array_equal(
    jax.jit(jax.vmap(find, (None, 0)))(x, books), [expected, 19 - expected]
  )
  assert find(x[0], codebook).shape == () and nearest_code(x[:0], codebook).shape == (0,)

  def loss(x, codebook):
    return jnp.sum((x - codebook[nearest_code(x, codebook)]) ** 2)

  np.testing.assert_allclose(
    jax.jit(jax.grad(loss))(x, codebook), 2 * (x - codebook[expected]), rtol=1e-6
  )


@pytest.mark.usefixtures("unchecked")
def test_mistakes_are_named():
  x = np.zeros((2, 3), np.float32)
  for mistake, says in [
    (lambda: nearest_code(x, x, distance="l1"), "l2, cosine"),
    (lambda: nearest_code(x, x, implementation="cuda"), "pallas_gpu"),
    (lambda: nearest_code(x, x[:, :2]), r"\(2, 2\)"),
  ]:
    with pytest.raises(ValueError, match=says):
      mistake()


def test_straight_through_is_the_code_forward_and_the_identity_backward():
  x, quantized = (jnp.asarray(a) for a in vectors(6, 6, 3, "random"))
  np.testing.assert_array_equal(straight_through(x * 1e8, quantized), quantized)
  weights = jnp.arange(18.0).reshape(6, 3)
  to_x, to_code = jax.grad(lambda x, q: jnp.sum(weights * straight_through(x, q)), (0, 1))(
    x, quantized
  )
  np.testing.assert_array_equal(to_x, weights)
  assert not to_code.any()


def test_statistics_count_and_add():
  rng = np.random.default_rng(0)
  x, ids, mask = (
    rng.normal(size=(4, 9, 5)).astype(np.float32),
    rng.integers(0, 7, (4, 9)),
    rng.random((4, 9)) < 0.7,
  )
  one_hot = np.eye(8)[ids] * mask[..., None]
  counts, sums = code_statistics(x, ids.astype(np.int32), 8, mask)
  np.testing.assert_array_equal(counts, one_hot.sum((0, 1)))
  np.testing.assert_allclose(sums, np.einsum("btk,btd->kd", one_hot, x), atol=1e-5)
  assert code_statistics(x, ids, 8)[0].sum() == 36


@pytest.mark.parametrize("rows", [64, 13])  # 13 rows do not divide over 8 devices
def test_spread_over_eight_devices_equals_one(rows):
  x, codebook = vectors(rows, 50, 6, "duplicates")
  mesh = partition.make_mesh(dict(data=2, fsdp=2, tensor=2))
  place = NamedSharding(mesh, P(("data", "fsdp")) if rows % 4 == 0 else P())
  expected = FIND["l2"](x, codebook)
  statistics = jax.jit(lambda x, i: code_statistics(x, i, 50))
  counts, sums = statistics(x, expected)
  for implementation in ("xla", "pallas_tpu"):
    find = jax.jit(lambda x, c: nearest_code(x, c, implementation=implementation))
    with jax.set_mesh(mesh):
      spread = find(jax.device_put(x, place), codebook)
      spread_counts, spread_sums = statistics(jax.device_put(x, place), spread)
    np.testing.assert_array_equal(spread, expected)
    np.testing.assert_array_equal(spread_counts, counts)
    np.testing.assert_allclose(spread_sums, sums, atol=1e-5)


def test_a_tpus_kernel_is_lowered_on_any_mesh():
  """Mosaic refuses a kernel where an axis of the mesh is left to the compiler."""
  x, codebook = vectors(64, 50, 128, "plain")
  with jax.set_mesh(partition.make_mesh(dict(data=8, fsdp=1, tensor=1))):
    traced = jax.jit(lambda x, c: nearest_code(x, c, implementation="pallas_tpu")).trace(
      x, codebook
    )
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["l2", "cosine"])
def test_compilers_find_no_matrix_in_memory_and_fewer_bundles(way):
  temporaries, bundles = benchmark.compile_for("v5e", way)
  assert temporaries < 10**6
  assert bundles < benchmark.compile_for("v5e", "plain")[1]
  assert benchmark.compile_for("h100", way)[0] < 10**6
