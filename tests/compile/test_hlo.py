"""Collectives of programs in which they are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vlx.compile import hlo


def compiled(per_device, shape):
  """Optimized HLO of per_device under shard_map over 4 devices, rows of f32 `shape` split."""
  mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))
  function = jax.shard_map(
    per_device, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False
  )
  argument = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P("x")))
  return jax.jit(function).lower(argument).compile().as_text()


SHIFT = [(i, (i + 1) % 4) for i in range(4)]
ROWS = 8 * 16 * 4  # bytes of one device's rows of f32 [32, 16]


@pytest.mark.parametrize(
  "kind,per_device,size",
  [
    ("all-reduce", lambda x: jax.lax.psum(x, "x"), ROWS),
    ("all-gather", lambda x: jax.lax.all_gather(x, "x", tiled=True), 4 * ROWS),
    ("reduce-scatter", lambda x: jax.lax.psum_scatter(x, "x", tiled=True), ROWS),
    ("all-to-all", lambda x: jax.lax.all_to_all(x, "x", 0, 1, tiled=True), ROWS),
    ("collective-permute", lambda x: jax.lax.ppermute(x, "x", SHIFT), ROWS),
  ],
)
def test_one_of_each_kind(kind, per_device, size):
  found = hlo.collectives(compiled(per_device, (32, 16)))
  assert {k: (c.count, c.bytes, c.in_unknown_loops) for k, c in found.items()} == {
    kind: (1, size, 0)
  }


def test_loops_are_multiplied_out():
  def per_device(x):
    inner = lambda x, _: (jax.lax.psum(jnp.sin(x), "x"), None)
    outer = lambda x, _: (jax.lax.scan(inner, x, length=5)[0], None)
    return jax.lax.scan(outer, x, length=7)[0]

  found = hlo.collectives(compiled(per_device, (32, 16)))["all-reduce"]
  assert (found.count, found.bytes, found.in_unknown_loops) == (35, 35 * ROWS, 0)


def test_a_loop_of_unknown_length_counts_once_and_is_told():
  def per_device(x):
    return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: jax.lax.psum(jnp.sin(x), "x"), x)

  found = hlo.collectives(compiled(per_device, (32, 16)))["all-reduce"]
  assert (found.count, found.bytes, found.in_unknown_loops) == (1, ROWS, 1)


def test_the_batch_of_a_partitioned_gradient():
  """Data parallel: the gradient of f32 [64, 24] is reduced once, whole."""
  mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))
  shape = lambda s, spec: jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, spec))
  gradient = jax.grad(lambda w, x: jnp.tanh(x @ w).sum())
  text = jax.jit(gradient).lower(shape((64, 24), P()), shape((32, 64), P("x"))).compile().as_text()
  found = hlo.collectives(text)
  assert list(found) == ["all-reduce"] and found["all-reduce"].bytes == 64 * 24 * 4


# As libtpu writes them: layouts with tiles, asynchronous starts, no notes of trip counts.
TPU = """HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (p: f32[16,128]) -> f32[4,128] {
  %p = f32[16,128]{1,0:T(8,128)} parameter(0)
  %r = f32[16,128]{1,0:T(8,128)} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %s = f32[4,128]{1,0:T(8,128)} dynamic-slice(%r), dynamic_slice_sizes={4,128}
}

%body (t: (s32[], bf16[4,128])) -> (s32[], bf16[4,128]) {
  %t = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[4,128]{1,0:T(8,128)(2,1)} get-tuple-element(%t), index=1
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  %g = (bf16[4,128]{1,0:T(8,128)(2,1)}, bf16[16,128]{1,0:T(8,128)(2,1)}) all-gather-start(%x), dimensions={0}
  %d = bf16[16,128]{1,0:T(8,128)(2,1)} all-gather-done(%g)
  %k.7 = bf16[4,128]{1,0:T(8,128)(2,1)} custom-call(%d), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"body":"TUzv"}}
  %k.8 = bf16[4,128]{1,0:T(8,128)(2,1)} custom-call(%d), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"body":"TUzv"}}
  ROOT %o = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}) tuple(%i, %k.7)
}

%cond (t: (s32[], bf16[4,128])) -> pred[] {
  %t = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %n = s32[]{:T(128)} constant(12)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[16,128], t: (s32[], bf16[4,128])) -> f32[4,128] {
  %x = f32[16,128]{1,0:T(8,128)} parameter(0)
  %t = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}) parameter(1)
  %k.9 = bf16[4,128]{1,0:T(8,128)(2,1)} custom-call(%x), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"body":"TUzw"}}
  %w = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}) while(%t), condition=%cond, body=%body
  ROOT %f = f32[4,128]{1,0:T(8,128)} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_tpu_programs():
  found = {k: (c.count, c.bytes) for k, c in hlo.collectives(TPU).items()}
  assert found == {"all-gather": (12, 12 * 16 * 128 * 2), "reduce-scatter": (1, 16 * 128 * 4)}
  assert hlo.kernels(TPU) == {("k.9",): 1, ("k.7", "k.8"): 2 * 12}


@pytest.mark.parametrize(
  "shape,size",
  [
    ("f32[]", 4),
    ("pred[3]{0}", 3),
    ("(bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, u32[])", 2052),
    ("s4[10]{0}", 5),
    ("f8e4m3fn[7]{0}", 7),
    ("token[]", 0),
    ("()", 0),
  ],
)
def test_bytes_of_shapes(shape, size):
  assert hlo.size(shape) == size
