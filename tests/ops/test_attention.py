"""Attention against its definition in float64: values, log-sum-exp, gradients; under
transformations.
"""

import contextlib
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vlx.core.partition import make_mesh
from vlx.ops import attention as front
from vlx.ops import masks
from vlx.ops.attention import attention, attention_weights

TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}  # of the largest magnitude


def truth(q, k, v, d_out, d_lse, seen, scale):
  """(out, lse, dq, dk, dv) in float64 by the definition; `seen` is bool `[batch, length, keys]`."""
  q, k, v, d_out, d_lse = (np.asarray(x, np.float64) for x in (q, k, v, d_out, d_lse))
  share = q.shape[2] // k.shape[2]
  k, v = np.repeat(k, share, axis=2), np.repeat(v, share, axis=2)
  scores = np.where(seen[:, None], scale * np.einsum("bthd,bshd->bhts", q, k), -np.inf)
  some = seen.any(axis=2)[:, None, :]
  lse = np.where(some, np.logaddexp.reduce(scores, axis=3), -np.inf)
  weights = np.exp(scores - np.where(some, lse, 0)[..., None])
  out = np.einsum("bhts,bshd->bthd", weights, v)
  d_weights = np.einsum("bthd,bshd->bhts", d_out, v)
  mean = np.sum(weights * d_weights, axis=3, keepdims=True)
  d_scores = scale * weights * (d_weights - mean + d_lse[..., None])
  d_queries = np.einsum("bhts,bshd->bthd", d_scores, k)
  d_keys, d_values = (
    np.einsum("bhts,bthd->bshd", x, y).reshape(*k.shape[:2], -1, share, k.shape[3]).sum(axis=3)
    for x, y in ((d_scores, q), (weights, d_out))
  )
  return out, lse, d_queries, d_keys, d_values


def inputs(batch, length, keys_length, groups, share, head_dim, dtype="float32", seed=0):
  """Queries, keys, values, and cotangents of the output and of the log-sum-exp."""
  rng = np.random.default_rng(seed)
  shapes = (
    (batch, length, groups * share, head_dim),
    (batch, keys_length, groups, head_dim),
    (batch, keys_length, groups, head_dim),
    (batch, length, groups * share, head_dim),
  )
  arrays = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
  return *arrays, jnp.asarray(rng.normal(size=(batch, groups * share, length)), jnp.float32)


@functools.partial(jax.jit, static_argnames=("scale", "implementation"))
def values_and_gradients(q, k, v, d_out, d_lse, mask, scale=None, implementation="auto"):
  """(out, lse, dq, dk, dv)."""
  (out, lse), pull = jax.vjp(
    lambda *x: attention(
      *x, mask=mask, scale=scale, implementation=implementation, return_lse=True
    ),
    q,
    k,
    v,
  )
  return out, lse, *pull((d_out, d_lse))


def assert_close(actual, expected, tolerance):
  for name, x, y in zip(
    ("out", "lse", "d_queries", "d_keys", "d_values"), actual, expected, strict=True
  ):
    x = np.asarray(x, np.float64)
    np.testing.assert_array_equal(np.isneginf(x), np.isneginf(y), err_msg=name)
    x, y = (np.where(np.isneginf(a), 0, a) for a in (x, y))
    # The absolute error of a logarithm is the relative one of the softmax's denominator.
    magnitude = 1 if name == "lse" else max(np.abs(y).max(), 1e-3)
    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * magnitude, err_msg=name)


def masks_of(batch, length, keys_length):
  """Of every kind and their pairs; rows that see nothing are among what they make."""
  side = int(np.sqrt(max(length - 3, 1)))

  def ids(seed, size, high=4):
    return jnp.asarray(np.random.default_rng(seed).integers(0, high, (batch, size)))

  def runs(seed, size):
    return jnp.sort(ids(seed, size), axis=1)  # what packing makes: whole tiles that see nothing

  seeds = st.integers(0, 99)
  simple = st.one_of(
    st.just(masks.Full()),
    st.integers(-5, 5).map(masks.Causal),
    st.integers(0, length).map(masks.PrefixCausal),
    st.tuples(st.integers(0, 50), st.integers(0, 9)).map(lambda w: masks.Window(*w)),
    st.integers(1, keys_length).map(masks.Keys),
    st.just(masks.Row(3, side)),
    st.just(masks.Conv(3, side, 3)),
    st.booleans().map(lambda t: masks.Column(3, side, side, t)),
    seeds.map(lambda s: masks.Segments(ids(s, length), ids(s + 1, keys_length))),
    seeds.map(lambda s: masks.Segments(runs(s, length), runs(s + 1, keys_length))),
    seeds.map(lambda s: masks.KeyPadding(ids(s, keys_length, 2))),
  )
  pair = st.tuples(simple, simple, st.booleans()).map(
    lambda p: p[0] & p[1] if p[2] else p[0] | p[1]
  )
  return st.one_of(simple, pair, st.tuples(pair, simple).map(lambda p: p[0] & p[1]))


@st.composite
def cases(draw, longest, head_dims=(8, 16, 40, 64)):
  """(sizes, mask, scale, type)."""
  batch, groups, share = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
  length, keys_length = draw(st.integers(1, longest)), draw(st.integers(1, longest))
  sizes = (batch, length, keys_length, groups, share, draw(st.sampled_from(head_dims)))
  mask = draw(masks_of(batch, length, keys_length))
  return sizes, mask, draw(st.sampled_from((None, 0.3))), draw(st.sampled_from(sorted(TOLERANCES)))


def check(case, implementation):
  (batch, length, keys_length, *sizes), mask, scale, dtype = case
  arrays = inputs(batch, length, keys_length, *sizes, dtype)
  actual = values_and_gradients(*arrays, mask, scale, implementation)
  seen = np.broadcast_to(mask.dense(length, keys_length), (batch, length, keys_length))
  scale = scale or sizes[-1] ** -0.5
  assert_close(actual, truth(*arrays, seen, scale), TOLERANCES[dtype])
  assert [x.dtype for x in actual] == [dtype, "float32", dtype, dtype, dtype]


@settings(max_examples=16, deadline=None, derandomize=True)
@given(cases(longest=40))
def test_dense(case):
  check(case, "xla")


@settings(max_examples=6, deadline=None, derandomize=True)
@given(cases(longest=40))
def test_reference(case):
  check(case, "reference")


def test_weights_to_look_at():
  """Rows that sum to 1, or to 0 where nothing is seen; with the values they make the output."""
  q, k, v, *_ = inputs(2, 9, 13, 2, 2, 8)
  mask = masks.Causal(-2)
  weights = attention_weights(q, k, mask=mask, scale=0.3)
  np.testing.assert_allclose(
    weights.sum(axis=3), np.broadcast_to(np.arange(9) >= 2, (2, 4, 9)), atol=1e-6
  )
  out = jnp.einsum("bhts,bshd->bthd", weights, jnp.repeat(v, 2, axis=2))
  np.testing.assert_allclose(out, attention(q, k, v, mask=mask, scale=0.3), atol=1e-5)


def test_reference_in_float64():
  with jax.enable_x64(True):
    arrays = [x.astype(jnp.float64) for x in inputs(2, 9, 13, 2, 2, 8)]
    mask = masks.Causal(-2)
    actual = values_and_gradients(*arrays, mask, implementation="reference")
    seen = np.broadcast_to(mask.dense(9, 13), (2, 9, 13))
    assert_close(actual, truth(*arrays, seen, 8**-0.5), 1e-14)


@pytest.fixture
def dense_kernels(monkeypatch):
  """The dense functions in the kernels' place: what stands around kernels, without their
  compilation.

  The list of the shapes of keys that they are traced with.
  """
  shapes = []

  def instead(function):
    def kernel(*operands, scale, interpret):
      del interpret
      shapes.append(operands[1].shape)
      return function(*operands, scale=scale)

    return kernel

  module = SimpleNamespace(
    forward=instead(front._dense_forward), backward=instead(front._dense_backward)
  )
  jax.clear_caches()
  monkeypatch.setattr(front, "_kernels", lambda platform: module)
  yield shapes
  jax.clear_caches()


@pytest.fixture(
  params=[
    "dense",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("pallas_tpu", "pallas_gpu")),
  ]
)
def kernels(request):
  """The name of an implementation by kernels."""
  if request.param != "dense":
    return request.param
  request.getfixturevalue("dense_kernels")
  return "pallas_tpu"


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_queries_that_see_nothing(implementation):
  # In the second sequence all is padding.
  mask = masks.KeyPadding(jnp.array([[1] * 5 + [0] * 3, [0] * 8])) & masks.Causal(-2)
  q, k, v, d_out, d_lse = inputs(2, 6, 8, 1, 2, 16)
  if implementation != "reference":
    d_lse = d_lse.at[1].set(jnp.inf)  # whatever comes back for the log-sum-exp of nothing
  out, lse, dq, dk, dv = values_and_gradients(
    q, k, v, d_out, d_lse, mask, implementation=implementation
  )
  blind = ~np.asarray(mask.dense(6, 8)).any(axis=2)
  assert blind[0].sum() == 2 and blind[1].all()
  assert (np.asarray(out)[blind] == 0).all() and (np.asarray(dq)[blind] == 0).all()
  assert np.isneginf(lse.transpose(0, 2, 1)[blind]).all()
  assert (dk[1] == 0).all() and (dv[1] == 0).all()
  assert all(np.isfinite(x).all() for x in (out, dq, dk, dv))


def test_a_key_out_of_sight_has_no_say():
  q, k, v, *_ = inputs(1, 6, 6, 1, 1, 8)
  slopes = jax.jit(jax.jacrev(lambda v: attention(q, k, v, mask=masks.Causal())[0].sum((1, 2))))(v)
  np.testing.assert_array_equal((slopes[:, 0, :, 0] != 0).all(axis=2), np.tri(6, dtype=bool))


def test_nothing_of_the_size_of_all_pairs_is_kept_for_the_gradients():
  q, k, v, *_ = inputs(1, 128, 128, 1, 1, 8)
  _, pull = jax.vjp(lambda *x: attention(*x, mask=masks.Causal(), implementation="xla"), q, k, v)
  assert max(x.size for x in jax.tree.leaves(pull)) <= q.size


# Long enough for more than one tile; a mask with data, one without.
LENGTH = 70
SEGMENTS = jnp.asarray(np.sort(np.random.default_rng(0).integers(0, 4, (2, LENGTH)), axis=1))
MASKS = {"causal": masks.Causal(), "packed": masks.Causal() & masks.Segments.of(SEGMENTS)}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_remat_and_scan(kernels, mask):
  q, k, v, d_out, _ = inputs(2, LENGTH, LENGTH, 1, 2, 16)

  def layer(q, k, v, implementation):
    return attention(q, k, v, mask=mask, implementation=implementation)

  def unrolled(q, k, v):
    return layer(layer(q, k, v, "reference"), k, v, "reference")

  def stacked(q, k, v):
    step = jax.checkpoint(lambda x, _: (layer(x, k, v, kernels), None))
    return jax.lax.scan(step, q, None, length=2)[0]

  expected, actual = (
    jax.jit(lambda q, k, v, f=f: (f(q, k, v), jax.vjp(f, q, k, v)[1](d_out)))(q, k, v)
    for f in (unrolled, stacked)
  )
  for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * np.abs(y).max())


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_vmap(kernels, mask):
  """Over queries, mask and values, the keys shared; each slice as if it stood alone, gradients
  too.
  """
  q, k, v, d_out, d_lse = (
    jnp.stack(x)
    for x in zip(*(inputs(2, LENGTH, LENGTH, 1, 2, 16, seed=seed) for seed in range(2)))
  )
  many = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), mask)
  run = functools.partial(values_and_gradients, implementation=kernels)
  together = jax.vmap(run, in_axes=(0, None, 0, 0, 0, 0))(q, k[0], v, d_out, d_lse, many)
  for i in range(2):
    alone = run(q[i], k[0], v[i], d_out[i], d_lse[i], jax.tree.map(lambda x: x[i], many))
    for x, y in zip(together, alone):
      np.testing.assert_allclose(x[i], y, rtol=1e-5, atol=1e-5)


# A mesh, the batch's size, groups of heads; the rows and groups that a device is left with.
SHARDED = {
  "rows": (dict(data=2, fsdp=4, tensor=1), 8, 2, (1, 2)),
  "rows and heads": (dict(data=2, fsdp=2, tensor=2), 4, 2, (1, 1)),
  "rows in part": (dict(data=2, fsdp=4, tensor=1), 2, 2, (1, 2)),
  "heads that do not divide": (dict(data=2, fsdp=1, tensor=4), 2, 2, (1, 2)),
}


@pytest.mark.parametrize("sizes, batch, groups, own", SHARDED.values(), ids=SHARDED)
def test_kernels_get_a_devices_own_rows_and_heads(dense_kernels, sizes, batch, groups, own):
  arrays = inputs(batch, LENGTH, LENGTH, groups, 2, 16)
  with jax.set_mesh(make_mesh(sizes)):
    jax.eval_shape(
      functools.partial(values_and_gradients, implementation="pallas_gpu"), *arrays, masks.Full()
    )
  assert {(rows, heads) for rows, _, heads, _ in dense_kernels} == {own}


@pytest.mark.parametrize("sizes, batch, groups, _", SHARDED.values(), ids=SHARDED)
def test_sharded_equals_unsharded(kernels, sizes, batch, groups, _):
  arrays = inputs(batch, LENGTH, LENGTH, groups, 2, 16)
  mask = masks.Causal() & masks.Segments.of(jnp.tile(SEGMENTS, (batch // 2, 1)))
  expected = values_and_gradients(*arrays, mask, implementation="reference")
  mesh = make_mesh(sizes)
  rows = ("data", "fsdp") if batch % (sizes["data"] * sizes["fsdp"]) == 0 else "data"
  placed = jax.device_put((*arrays, mask), NamedSharding(mesh, P(rows)))
  with jax.set_mesh(mesh):
    actual = values_and_gradients(*placed, implementation=kernels)
  for x, y in zip(actual, expected):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_sharded_kernels_stay_where_the_arrays_are(dense_kernels):
  """No device fetches another's rows or heads."""
  mesh = make_mesh(dict(data=4, fsdp=1, tensor=2))
  arrays = jax.device_put(
    inputs(4, 16, 16, 2, 1, 16)[:4], NamedSharding(mesh, P("data", None, "tensor"))
  )
  with jax.set_mesh(mesh):
    gradients = jax.jit(
      lambda q, k, v, d_out: jax.vjp(
        lambda *x: attention(*x, mask=masks.Causal(), implementation="pallas_gpu"), q, k, v
      )[1](d_out)
    )
    text = gradients.lower(*arrays).compile().as_text()
  assert "all-gather" not in text and "all-to-all" not in text and "collective-permute" not in text


@pytest.mark.parametrize("check_vma", [False, True])
def test_inside_a_shard_map(kernels, check_vma):
  """Each device's queries, the keys of all: gradients of keys are summed over devices as they
  come back.
  """
  if check_vma and kernels == "pallas_gpu":
    pytest.skip(
      "JAX's interpreter of loads at run-time positions does not track what varies over a mesh"
    )
  mesh = make_mesh(dict(data=4, fsdp=1, tensor=1), jax.devices()[:4])
  q, k, v, d_out, _ = inputs(4, LENGTH, LENGTH, 1, 2, 16)

  def attend(q, k, v, implementation):
    k, v = (jnp.broadcast_to(x, (q.shape[0], *x.shape[1:])) for x in (k, v))
    return attention(q, k, v, mask=masks.Causal(), implementation=implementation)

  inside = jax.shard_map(
    functools.partial(attend, implementation=kernels),
    mesh=mesh,
    in_specs=(P("data"), P(), P()),
    out_specs=P("data"),
    check_vma=check_vma,
  )
  expected, actual = (
    jax.jit(lambda *x, f=f: jax.vjp(f, *x)[1](d_out))(q, k[:1], v[:1])
    for f in (functools.partial(attend, implementation="reference"), inside)
  )
  for x, y in zip(actual, expected):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def lowered(platform, length, **kwargs):
  """The text of `attention` and its gradients, lowered for the platform."""
  q, k, v, *_ = (jax.ShapeDtypeStruct((2, length, 2, 64), jnp.bfloat16) for _ in range(3))
  f = jax.grad(
    lambda *x: attention(*x, mask=masks.Causal(), **kwargs).sum().astype(float), (0, 1, 2)
  )
  # Triton asks what GPU it is lowered for, from JAX 0.11 on.
  h100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
  mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=h100)
  on_it = jax.sharding.use_abstract_mesh(mesh) if platform == "cuda" else contextlib.nullcontext()
  with on_it:
    return jax.jit(f).trace(q, k, v).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
  "platform, kernel", [("cuda", "__gpu$xla.gpu.triton"), ("tpu", "tpu_custom_call")]
)
def test_auto_takes_the_kernels_of_the_platform_that_it_is_lowered_for(platform, kernel):
  assert lowered(platform, 512).count(kernel) == 3  # forward, dq, dkv
  assert kernel not in lowered(platform, 65)
  assert kernel not in lowered(platform, 512, implementation="xla")
  assert "custom_call" not in lowered("cpu", 512)


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(implementation="flash"), "implementation 'flash' is none of"),
    (dict(keys=jnp.zeros((2, 5, 3, 8)), values=jnp.zeros((2, 5, 3, 8))), "do not go together"),
    (dict(keys=jnp.zeros((2, 5, 2, 16))), "do not go together"),
    (dict(values=jnp.zeros((2, 5, 2, 8), jnp.bfloat16)), "differ in type"),
    (dict(scale=0.0), "scale 0.0 is not positive"),
    (dict(mask=masks.KeyPadding(jnp.ones((2, 4)))), r"over keys is \(2, 4\), not \(2, 5\)"),
  ],
  ids=["unknown name", "groups", "head_dim", "type", "scale", "mask"],
)
@pytest.mark.usefixtures("unchecked")
def test_what_does_not_go_together(change, message):
  arrays = dict(
    queries=jnp.zeros((2, 3, 4, 8)), keys=jnp.zeros((2, 5, 2, 8)), values=jnp.zeros((2, 5, 2, 8))
  )
  with pytest.raises(ValueError, match=message):
    attention(**(arrays | change))
