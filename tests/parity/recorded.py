"""What the parity tests share: recorded cases, lists of public names, and how close is equal."""

import json
import pathlib

import jax
import numpy as np
from safetensors import safe_open

from tests import contract
from vlx.core.system import names
from vlx.pretrained import tables

PARITY = pathlib.Path(__file__).parent


class Recorded:
  """One case of a file that `record/` wrote."""

  def __init__(self, file: str, case: str):
    with safe_open(PARITY / f"{file}.safetensors", "numpy") as tensors:
      self.config = json.loads(tensors.metadata()[case])
      parts = {"weights": {}, "inputs": {}, "outputs": {}}
      for key in tensors.keys():
        of, part, name = key.split("/", 2)
        if of == case:
          parts[part][name] = tensors.get_tensor(key)
    self.weights, self.inputs, self.outputs = parts.values()

  @property
  def shapes(self):
    return {name: x.shape for name, x in self.weights.items()}

  def load(self, rows, network):
    """The variables of a network of texts."""
    wanted = jax.eval_shape(network.init, jax.random.key(0), self.inputs["text"])
    return as_tree(tables.read(rows, wanted, self.shapes, self.weights.__getitem__), wanted)

  def load_system(self, layout):
    """The variables of a layout's system."""
    wanted = contract.shapes(layout.system)
    found = tables.read(
      layout.rows, wanted, self.shapes, self.weights.__getitem__, aliases=layout.aliases
    )
    return as_tree(found, wanted)


def as_tree(found, wanted):
  """Name → array as the tree that was wanted."""
  return jax.tree.map(found.__getitem__, names(wanted))


def assert_parity(found, expected):
  assert found.shape == expected.shape
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def named_shapes(file):
  lines = (PARITY / "names" / f"{file}.txt").read_text().splitlines()
  return {name: tuple(map(int, shape)) for name, *shape in map(str.split, lines)}


def assert_returned(rows, variables, weights):
  """The table turned round gives back the public tensors, bit for bit."""
  returned = dict(tables.export(rows, variables))
  assert returned.keys() == weights.keys()
  for name, tensor in weights.items():
    assert returned[name].shape == tensor.shape, name
    np.testing.assert_array_equal(returned[name], tensor, err_msg=name)
