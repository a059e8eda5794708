"""Checksums: of every element's every bit and place, however an array is split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vlx.core import checksums

DTYPES = ("float32", "bfloat16", "int8", "bool", "uint16")


def total(**arrays):
  return checksums.checksums(arrays).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_turned_bit_is_missed(dtype):
  x = np.random.default_rng(0).integers(0, 2, (3, 4, 2)).astype(jnp.dtype(dtype))
  before = total(x=jnp.asarray(x))
  seen = {str(before)}
  bits = x.view(np.uint8)
  for place in np.ndindex(bits.shape):
    for bit in (0,) if dtype == "bool" else range(8):
      bits[place] ^= 1 << bit
      seen.add(str(total(x=jnp.asarray(x))))
      bits[place] ^= 1 << bit
  assert len(seen) == 1 + bits.size * (1 if dtype == "bool" else 8)  # each is another
  assert total(x=jnp.asarray(x)) == before


def test_it_is_the_same_however_an_array_is_split(monkeypatch):
  x = np.random.default_rng(0).normal(size=(8, 12, 4)).astype(np.float32)
  whole = total(x=jnp.asarray(x))
  mesh = jax.make_mesh((4, 2), ("a", "b"))
  for spec in ((), ("a",), (None, "a", "b"), ("b", None, "a"), (("a", "b"),)):
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    assert total(x=split) == whole, spec
  monkeypatch.setattr(checksums, "ELEMENTS", 50)
  assert total(x=jnp.asarray(x)) == whole


def test_places_and_arrays_are_told_apart():
  x = jnp.arange(12.0)
  assert len({str(total(x=y)) for y in (x, x[::-1], jnp.roll(x, 1), x.reshape(3, 4))}) == 4
  assert total(a=x, b=-x) != total(a=-x, b=x)
  assert total(a=jnp.zeros((0, 3)), b=jnp.zeros(())) == [[0, 0], [0, 0]]
