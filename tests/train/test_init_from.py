"""Parameters that start where another run ended."""

import jax
import numpy as np
import pytest

from vlx.core.errors import UserError
from vlx.train import init_from

MESH = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
THEIRS = {
    "params": {"tower": {"a": np.full(2, 3.0), "b": {"c": np.full((2, 2), 4.0)}}, "head": np.ones(5)},
    "state": {"batch_stats": {"tower": {"mean": np.full(2, 5.0)}}},
}


def ours():
  return jax.tree.map(jax.numpy.asarray, {
      "params": {"encoder": {"a": np.zeros(2), "b": {"c": np.zeros((2, 2))}}, "words": np.zeros((3, 2))},
      "state": {"batch_stats": {"encoder": {"mean": np.zeros(2)}}, "reward": {"baseline": np.zeros(())}},
  })


@pytest.fixture(autouse=True)
def trained(monkeypatch):
  monkeypatch.setattr(init_from.checkpoint, "restore_variables", lambda place, sharding: THEIRS)


def test_a_part_of_another_run_and_an_array_of_a_file(tmp_path):
  vectors = tmp_path / "vectors.npy"
  np.save(vectors, np.arange(6.0).reshape(3, 2))
  rules = (("run", "tower", "encoder"), (str(vectors), "", "words"))
  found = init_from.replace(ours(), rules, MESH)
  assert (found["params"]["encoder"]["b"]["c"] == 4).all() and (found["params"]["encoder"]["a"] == 3).all()
  assert (found["state"]["batch_stats"]["encoder"]["mean"] == 5).all()
  np.testing.assert_array_equal(found["params"]["words"], np.arange(6).reshape(3, 2))
  assert found["state"]["reward"]["baseline"] == 0
  assert jax.tree.structure(found) == jax.tree.structure(ours())


def test_a_system_without_a_state_stays_one():
  variables = jax.tree.map(jax.numpy.asarray, {"params": {"weights": np.zeros(5)}, "state": {}})
  found = init_from.replace(variables, (("run", "head", "weights"),), MESH)
  assert (found["params"]["weights"] == 1).all() and found["state"] == {}


@pytest.mark.parametrize("rule,message", [
    (("run", "tower", "encode"), "this system has no params/encode/a"),
    (("run", "", ""), "params/words is not in run"),
    (("run", "towr", "encoder"), "params/encoder/a is not in run"),
    (("run", "head", "words"), r"params/words: \[5\] in run, \[3, 2\] here"),
    (("nothing.npy", "", "words"), "no file nothing.npy"),
])
def test_what_does_not_fit_is_told(rule, message):
  with pytest.raises(UserError, match=message):
    init_from.replace(ours(), (rule,), MESH)
