"""Tables of names: import, export, and what a checkpoint that does not fit is told."""

import itertools
import tracemalloc

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlx.core.errors import UserError
from vlx.core.system import names
from vlx.pretrained import tables
from vlx.pretrained.tables import WORKERS, Row, export, public_shapes

DEPTH = 3
ROWS = [
  Row("word.weight", "params/word/embedding"),
  Row("layer.{layer}.q.weight", "params/blocks/query/kernel", ("(h e) d -> d h e", {"h": 2})),
  Row("layer.{layer}.norm.weight", "params/blocks/norm/scale"),
  Row("bn.running_mean", "state/bn/mean"),
  Row("layer.{layer}.steps", None),
  Row("scale", "params/scale"),
]
S = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
WANTED = {
  "params": {
    "word": {"embedding": S(7, 4)},
    "scale": S(),
    "blocks": {"query": {"kernel": S(DEPTH, 4, 2, 3)}, "norm": {"scale": S(DEPTH, 4)}},
  },
  "state": {"bn": {"mean": S(5)}},
}


def load(rows, variables, shapes, fetch, **how):
  """The whole tree."""
  found = tables.read(rows, variables, shapes, fetch, **how)
  return jax.tree.map(found.__getitem__, names(variables))


def checkpoint():
  rng = np.random.default_rng(0)
  shapes = {"word.weight": (7, 4), "bn.running_mean": (5,), "scale": ()}
  for i in range(DEPTH):
    shapes |= {
      f"layer.{i}.q.weight": (6, 4),
      f"layer.{i}.norm.weight": (4,),
      f"layer.{i}.steps": (),
    }
  return {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in shapes.items()}


def loaded(tensors, **how):
  return load(ROWS, WANTED, {n: x.shape for n, x in tensors.items()}, tensors.__getitem__, **how)


def test_layers_are_stacked_and_patterns_applied():
  tensors = checkpoint()
  variables = loaded(tensors)
  kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert kinds(variables) == kinds(WANTED)
  query = variables["params"]["blocks"]["query"]["kernel"]
  for i in range(DEPTH):
    np.testing.assert_array_equal(query[i, 1, :, 2], tensors[f"layer.{i}.q.weight"][[2, 5], 1])
  np.testing.assert_array_equal(variables["state"]["bn"]["mean"], tensors["bn.running_mean"])


@pytest.mark.parametrize("order", list(itertools.permutations("abcd")), ids="".join)
def test_every_order_of_axes_is_copied_right(order):
  source = np.random.default_rng(0).normal(size=(3, 101, 1, 18)).astype(np.float32)
  for tensor in (source, np.asfortranarray(source), np.broadcast_to(source[:1], source.shape)):
    there = f"a b c d -> {' '.join(order)}"
    expected = einops.rearrange(tensor, there)
    wanted = {"params": {"w": S(*expected.shape)}}
    found = load(
      [Row("w", "params/w", (there, {}))], wanted, {"w": tensor.shape}, {"w": tensor}.__getitem__
    )
    np.testing.assert_array_equal(found["params"]["w"], expected)


def test_export_is_the_inverse():
  tensors = checkpoint()
  returned = dict(export(ROWS, loaded(tensors)))
  kept = {name for name in tensors if "steps" not in name}
  assert returned.keys() == kept == public_shapes(ROWS, WANTED).keys()
  for name in kept:
    assert returned[name].flags.c_contiguous and returned[name].shape == tensors[name].shape
    np.testing.assert_array_equal(returned[name], tensors[name])


FUSED = [
  Row(
    "layer.{layer}.qkv.weight",
    ("params/blocks/q", "params/blocks/k"),
    ("(n h e) d -> n d h e", {"n": 2, "h": 3}),
  ),
  Row("kv", ("params/k", "params/v"), ("(n o) -> n o", {"n": 2})),
]
FUSED_WANTED = {
  "params": {"blocks": {"q": S(2, 5, 3, 4), "k": S(2, 5, 3, 4)}, "k": S(7), "v": S(7)}
}


def test_a_public_tensor_may_hold_several_variables():
  rng = np.random.default_rng(0)
  tensors = {f"layer.{i}.qkv.weight": rng.normal(size=(24, 5)) for i in range(2)}
  tensors["kv"] = rng.normal(size=14)
  tensors = {name: x.astype(np.float32) for name, x in tensors.items()}
  shapes = {name: x.shape for name, x in tensors.items()}
  read = []
  variables = load(FUSED, FUSED_WANTED, shapes, lambda name: read.append(name) or tensors[name])
  assert sorted(read) == sorted(tensors)
  np.testing.assert_array_equal(variables["params"]["v"], tensors["kv"][7:])
  np.testing.assert_array_equal(
    variables["params"]["blocks"]["k"][1, :, 2, 3], tensors["layer.1.qkv.weight"][12 + 11]
  )
  assert public_shapes(FUSED, FUSED_WANTED) == shapes
  returned = dict(export(FUSED, variables))
  assert returned.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(returned[name], tensor)


def test_what_does_not_fit_several_variables_is_told_once():
  shapes = {
    "layer.0.qkv.weight": (23, 5),
    "layer.1.qkv.weight": (24, 5),
    "layer.2.qkv.weight": (24, 5),
  }
  wanted = {"params": {"blocks": FUSED_WANTED["params"]["blocks"], "k": S(7)}}
  with pytest.raises(UserError) as told:
    load(FUSED, wanted, shapes, lambda name: pytest.fail("read"))
  assert str(told.value).splitlines()[1:] == [
    "  misshapen: layer.0.qkv.weight is [23, 5], not [24, 5],"
    " for layer 0 of params/blocks/q, params/blocks/k",
    "  missing: kv [14] for params/k, params/v",
    "  surplus: layer.2.qkv.weight [24, 5], a layer that params/blocks/q, params/blocks/k lacks",
    "  the table has kv for params/v, which the model lacks",
  ]


def test_tensors_of_another_type_are_converted():
  tensors = {n: x.astype(jnp.bfloat16) for n, x in checkpoint().items()}
  scale = loaded(tensors)["params"]["blocks"]["norm"]["scale"]
  assert scale.dtype == jnp.float32
  np.testing.assert_array_equal(scale[1], tensors["layer.1.norm.weight"].astype(np.float32))


def test_everything_that_does_not_fit_is_told_at_once_before_anything_is_read():
  tensors = checkpoint()
  del tensors["layer.1.norm.weight"], tensors["word.weight"]
  tensors["layer.2.q.weight"] = np.zeros((4, 6), np.float32)
  tensors["layer.3.norm.weight"] = tensors["head.weight"] = np.zeros(4, np.float32)
  shapes = {n: x.shape for n, x in tensors.items()}
  with pytest.raises(UserError) as told:
    load(ROWS, WANTED, shapes, lambda name: pytest.fail("read"))
  assert str(told.value).splitlines()[1:] == [
    "  misshapen: layer.2.q.weight is [4, 6], not [6, 4], for layer 2 of params/blocks/query/kernel",
    "  missing: layer.1.norm.weight [4] for layer 1 of params/blocks/norm/scale",
    "  missing: word.weight [7, 4] for params/word/embedding",
    "  surplus: head.weight [4], which the model has no place for",
    "  surplus: layer.3.norm.weight [4], a layer that params/blocks/norm/scale lacks",
  ]


def test_a_table_for_another_model_is_told_too():
  wanted = {"params": {**WANTED["params"], "extra": S(2)}}
  with pytest.raises(UserError) as told:
    load(
      ROWS, wanted, {n: x.shape for n, x in checkpoint().items()}, lambda name: pytest.fail("read")
    )
  assert "the table has nothing for params/extra" in str(told.value)
  assert "the table has bn.running_mean for state/bn/mean, which the model lacks" in str(told.value)


def test_older_names_are_read_and_told_as_they_stand():
  tensors = {n.replace("norm.weight", "norm.gamma"): x for n, x in checkpoint().items()}
  aliases = ((r"norm\.gamma$", "norm.weight"),)
  np.testing.assert_array_equal(
    loaded(tensors, aliases=aliases)["params"]["blocks"]["norm"]["scale"][2],
    tensors["layer.2.norm.gamma"],
  )
  with pytest.raises(UserError, match=r"surplus: layer\.0\.norm\.gamma"):
    loaded(tensors)


def test_a_copy_must_be_one():
  tensors, copies = checkpoint(), {"head.weight": "word.weight"}
  loaded(tensors, copies=copies)
  tensors["head.weight"] = tensors["word.weight"].copy()
  loaded(tensors, copies=copies)
  tensors["head.weight"][0, 0] += 1
  with pytest.raises(UserError, match="head.weight and word.weight differ"):
    loaded(tensors, copies=copies)


def test_memory_is_that_of_the_variables_and_of_what_is_being_read():
  """Tensors are made when asked for; arrays are handed over uncopied, here to nobody."""
  width, depth = 256, 16
  rows = [Row("layer.{layer}.w", "params/w", ("o i -> i o", {}))]
  tracemalloc.start()
  variables = load(
    rows,
    {"params": {"w": S(depth, width, width)}},
    {f"layer.{i}.w": (width, width) for i in range(depth)},
    lambda name: np.ones((width, width), np.float32),
  )
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  one = 4 * width**2
  assert depth * one < peak < (depth + WORKERS + 1) * one + 2**20
  assert variables["params"]["w"].sum() == depth * width**2


def test_no_more_than_two_variables_are_held_before_they_are_placed():
  """An accelerator's copy is made by `place`, and the host's is let go after it."""
  begun, placed, held = set(), [], []

  def fetch(name):
    begun.add(name)
    held.append(len(begun) - len(placed))
    return np.zeros(4, np.float32)

  names = "abcdefgh"
  variables = load(
    [Row(n, f"params/{n}") for n in names],
    {"params": {n: S(4) for n in names}},
    dict.fromkeys(names, (4,)),
    fetch,
    place=lambda name, array: placed.append(name) or array,
  )
  assert variables["params"].keys() == set(names) and max(held) <= 2


def test_a_placed_array_is_not_copied_on_cpu():
  addresses = []

  def place(name, array):
    addresses.append(array.ctypes.data)
    return jax.device_put(array)

  variables = load(
    [Row("w", "params/w")],
    {"params": {"w": S(1000, 10)}},
    {"w": (1000, 10)},
    lambda name: np.zeros((1000, 10), np.float32),
    place=place,
  )
  assert variables["params"]["w"].unsafe_buffer_pointer() == addresses[0]
