"""Variables that start elsewhere: in runs, parts, files."""

import jax
import ml_collections
import numpy as np
import pytest

from tests.train.toys import Composed, Scaler
from vlx.core import checkpoint, partition
from vlx.core import config as configs
from vlx.core import system as systems
from vlx.core.errors import UserError
from vlx.core.system import flatten
from vlx.train import initialize

SCALER = "tests.train.toys.Scaler"


def write(folder, system, seed):
  """A folder that holds a system's variables, none of which is what it would be drawn as."""
  variables = systems.init(system, jax.random.key(seed))
  variables = jax.tree.map(lambda x: x + 7, variables)
  with checkpoint.open_manager(folder / "checkpoints") as manager:
    checkpoint.save(manager, 0, {"variables": variables, "average": {}})
  section = ml_collections.ConfigDict(
    {
      "data": {"image_transform": ""},
      **{k: v for k, v in configs.part_of(system).items() if k == "system"},
      "model": configs.section_of(system),
    }
  )
  configs.write(folder, configs.Kept(section, section))
  return jax.tree.map(np.asarray, flatten(variables))


@pytest.fixture(scope="module")
def there(tmp_path_factory):
  folder = tmp_path_factory.mktemp("there")
  return str(folder), write(folder, Scaler(), seed=1)


def variables(system, model=None, init=(), dtype=None, mesh=None, frozen=()):
  mesh = mesh or jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
  config = ml_collections.ConfigDict({"model": model or {}, "init": init})
  shapes = flatten(jax.eval_shape(lambda k: systems.init(system, k), jax.random.key(0)))
  wanted = {
    n: jax.ShapeDtypeStruct(s.shape, dtype or s.dtype, sharding=partition.replicated(mesh))
    for n, s in shapes.items()
  }
  return initialize.variables(system, config, wanted, jax.random.key(0), frozen=frozenset(frozen))


def test_what_no_source_fills_is_as_the_system_draws_it():
  drawn = flatten(systems.init(Scaler(), jax.random.key(0)))
  for name, x in variables(Scaler()).items():
    np.testing.assert_array_equal(x, drawn[name])


def test_a_part_comes_whole_from_its_source(there):
  place, expected = there
  system = Composed(Scaler())
  found = variables(system, {"inner": {"source": place, "system": SCALER}})
  for name, x in expected.items():
    kind, _, rest = name.partition("/")
    np.testing.assert_array_equal(found[f"{kind}/inner/{rest}"], x)
  assert found["params/own"] == 1 and len(found) == len(expected) + 1


def test_what_is_frozen_does_not_stay_at_random_in_silence(there):
  """Filled, said to be wanted so, or an error that says how to do either."""
  place, _ = there
  frozen = {"params/net/kernel", "params/net/bias"}
  with pytest.raises(UserError, match="2 frozen variables would stay at random, e.g. params/net/b"):
    variables(Scaler(), frozen=frozen)
  half = dict(source=place, take="net", put="net", without=("bias",))
  with pytest.raises(UserError, match="1 frozen variables .*params/net/bias"):
    variables(Scaler(), init=(half,), frozen=frozen)
  random = dict(source="random", put="net")
  for init in ((random,), (half, random), (dict(half, without=()),)):
    assert len(variables(Scaler(), init=init, frozen=frozen))


def test_below_a_path_without_some_and_in_another_type(there):
  place, expected = there
  found = variables(
    Scaler(), init=(dict(source=place, take="net", put="net", without=("bias",)),), dtype="bfloat16"
  )
  assert found["params/net/kernel"].dtype == "bfloat16"
  np.testing.assert_array_equal(
    found["params/net/kernel"], expected["params/net/kernel"].astype("bfloat16")
  )
  np.testing.assert_array_equal(found["state/batch_stats/net/mean"], 7)
  np.testing.assert_array_equal(found["params/net/bias"], 0)
  drawn = flatten(systems.init(Scaler(), jax.random.key(0)))["params/blocks/gain"].astype(
    "bfloat16"
  )
  np.testing.assert_array_equal(found["params/blocks/gain"], drawn)


def test_some_layers_of_a_stack(there):
  place, expected = there
  found = variables(Scaler(depth=2), init=(dict(source=place, layers=(1, 3)),))
  np.testing.assert_array_equal(found["params/blocks/gain"], expected["params/blocks/gain"][1:3])


def test_a_tensor_that_two_parts_share_is_one_array(there):
  place, _ = there
  section = {"source": place, "system": SCALER}
  found = variables(Composed(Scaler(), Scaler()), {"inner": section, "other": dict(section)})
  assert found["params/inner/net/kernel"] is found["params/other/net/kernel"]


def test_an_array_of_a_file(tmp_path):
  np.save(tmp_path / "words.npy", np.arange(3.0)[:, None])
  found = variables(Scaler(), init=(dict(source=str(tmp_path / "words.npy"), put="net/kernel"),))
  np.testing.assert_array_equal(found["params/net/kernel"][:, 0], [0, 1, 2])


@pytest.mark.parametrize(
  "entry,message",
  [
    (
      dict(take="net", put="ned"),
      "this system has nothing for params/net/bias; .*params/net/kernel",
    ),
    (dict(put="net"), "params/net/kernel is not in .*nothing for params/blocks/gain"),
    (dict(take="nett", put="net"), "nothing stands below 'nett'"),
    (
      dict(take="blocks", put="blocks", layers=(0, 2)),
      r"params/blocks/gain: \[2, 3\] in .*, \[4, 3\] here",
    ),
    (dict(tak="net"), "no field 'tak' in config.init: did you mean 'take'"),
  ],
)
def test_what_does_not_fit_is_told(there, entry, message):
  with pytest.raises(UserError, match=message):
    variables(Scaler(), init=(dict(source=there[0], **entry),))


def test_a_source_that_is_not_there_is_told():
  with pytest.raises(UserError, match="no file nothing.npy"):
    variables(Scaler(), init=(dict(source="nothing.npy", put="net/kernel"),))
  with pytest.raises(UserError, match="there is no file or folder runs/nothing/at/all"):
    variables(Scaler(), init=(dict(source="runs/nothing/at/all"),))


def test_position_tables_of_another_grid_are_resampled(tmp_path):
  """A table that is linear in rows and columns stays so; the class token's row passes."""
  rows, columns = np.meshgrid(np.linspace(0, 1, 3), np.linspace(0, 1, 3), indexing="ij")
  grid = lambda side: np.stack(
    np.meshgrid(*[np.linspace(0, 1, side)] * 2, indexing="ij"), -1
  ).reshape(-1, 2)
  with_cls = lambda side: np.concatenate([[[5.0, 5.0]], grid(side)])[None].astype(np.float32)
  assert initialize._grids("x/position_embedding", (1, 10, 2), (1, 26, 2)) == (3, 5)
  assert initialize._grids("x/position_embedding", (1, 9, 2), (1, 25, 2)) == (3, 5)
  assert initialize._grids("x/position_embedding", (1, 10, 2), (1, 25, 2)) is None
  assert initialize._grids("x/kernel", (1, 10, 2), (1, 26, 2)) is None
  filling = initialize._Filling("", "params/x/position_embedding", None)
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  found = initialize._adapt(filling, jax.numpy.asarray(with_cls(3)), (1, 26, 2), one)
  np.testing.assert_allclose(found, with_cls(5), atol=1e-6)


def test_each_tensor_goes_straight_to_its_shards(there):
  place, expected = there
  mesh = partition.make_mesh(dict(data=1, fsdp=4, tensor=1), jax.devices()[:4])
  system = Scaler()
  shapes = jax.eval_shape(lambda k: systems.init(system, k), jax.random.key(0))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
  wanted = {
    n: jax.ShapeDtypeStruct(
      s.shape, s.dtype, sharding=split if "gain" in n else partition.replicated(mesh)
    )
    for n, s in flatten(shapes).items()
  }
  config = ml_collections.ConfigDict({"model": {}, "init": (dict(source=place),)})
  found = initialize.variables(system, config, wanted, jax.random.key(0))
  assert found["params/blocks/gain"].sharding == split
  np.testing.assert_array_equal(found["params/blocks/gain"], expected["params/blocks/gain"])
