"""Optimizer rules, freezing, clipping, accumulation, averages, partition rules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from vlx.core.errors import UserError
from vlx.core.system import Aux
from vlx.train import defaults, optimizer as optimizers, state as states, step as steps
from vlx.core import partition


@dataclasses.dataclass(frozen=True)
class Linear:
  """Least squares; counts its calls in `state`."""

  noise: float = 0.0

  def init(self, rng, batch):
    params = {"head": {"kernel": jnp.full((3, 2), 0.5), "bias": jnp.zeros(2)}, "body": {"kernel": jnp.eye(3)}}
    return {"params": params, "state": {"calls": jnp.zeros(())}}

  def loss(self, variables, batch, rng, *, step, train):
    p = variables["params"]
    x = batch["x"] @ p["body"]["kernel"] @ p["head"]["kernel"] + p["head"]["bias"]
    x = x + self.noise * jax.random.normal(rng, x.shape)
    return ((x - batch["y"]) ** 2).mean(), Aux({}, {"calls": variables["state"]["calls"] + 1})


def batch(rows=8):
  rng = np.random.default_rng(0)
  return {k: jnp.asarray(rng.normal(size=(rows, n)), jnp.float32) for k, n in (("x", 3), ("y", 2))}


def section(**changes):
  optim = defaults.get_config().optim
  optim.update(dict(lr=0.1, schedule="constant", rules=((".*", {}),), clip_norm=0.0))
  optim.update(changes)
  return optim


def run(optim, system=Linear(), steps_=5, data=None):
  data = data or batch()
  params = jax.eval_shape(system.init, None, data)["params"]
  optimizer = optimizers.make(optim, 100, params)
  state = states.init(system, optimizer, jax.random.key(0), data, averaged=bool(optim.ema_decay))
  train_step = jax.jit(steps.make(system, optimizer, optim, 100, seed=0))
  history = [state]
  for _ in range(steps_):
    state, metrics = train_step(state, data)
    history.append(state)
  return history, metrics


def test_a_frozen_parameter_does_not_move_by_a_bit_and_has_no_moments():
  optim = section(rules=(("^body/", None), (".*", dict(weight_decay=0.1))))
  history, metrics = run(optim)
  first, last = (h.variables["params"] for h in (history[0], history[-1]))
  np.testing.assert_array_equal(first["body"]["kernel"], last["body"]["kernel"])
  assert (first["head"]["kernel"] != last["head"]["kernel"]).all()
  sizes = [x.size for x in jax.tree.leaves(history[-1].optimizer)]
  assert sorted(sizes)[-2:] == [6, 6] and 9 not in sizes  # moments of the head alone
  # And its gradient is not in the norm.
  params = dict(first)
  grads = jax.grad(lambda head: Linear().loss(
      {"params": {**params, "head": head}, "state": {"calls": 0.0}}, batch(), jax.random.key(0),
      step=0, train=True)[0])(params["head"])
  norm = run(optim, steps_=1)[1]["grad_norm"]
  np.testing.assert_allclose(norm, optax.tree.norm(grads), rtol=1e-6)


def test_learning_rate_rules_scale_the_update():
  whole, _ = run(section(name="sgd", b1=0.0), steps_=1)
  tenth, _ = run(section(name="sgd", b1=0.0, rules=(("^head/", dict(lr_scale=0.1)), (".*", {}))), steps_=1)
  moved = lambda h: jax.tree.map(lambda a, b: a - b, h[1].variables["params"], h[0].variables["params"])
  np.testing.assert_allclose(
      moved(tenth)["head"]["kernel"], 0.1 * moved(whole)["head"]["kernel"], rtol=1e-4, atol=1e-7)
  np.testing.assert_array_equal(moved(tenth)["body"]["kernel"], moved(whole)["body"]["kernel"])


def test_clipping_bounds_the_update():
  data = {"x": batch()["x"] * 100, "y": batch()["y"]}
  history, metrics = run(section(name="sgd", b1=0.0, lr=1.0, clip_norm=0.5), steps_=1, data=data)
  moved = jax.tree.map(lambda a, b: a - b, history[1].variables["params"], history[0].variables["params"])
  assert metrics["grad_norm"] > 100
  np.testing.assert_allclose(optax.tree.norm(moved), 0.5, rtol=1e-4)


def test_accumulation_equals_the_whole_batch_for_a_mean_loss():
  whole, one = run(section())
  parts, other = run(section(accumulate=4))
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      whole[-1].variables["params"], parts[-1].variables["params"],
  )
  np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)
  assert parts[-1].variables["state"]["calls"] == 4 * 5  # the state passes through the parts


def test_average_of_parameters():
  history, _ = run(section(ema_decay=0.9), steps_=3)
  expected = history[0].variables["params"]["head"]["kernel"]
  for step, state in enumerate(history[1:]):
    decay = min(0.9, (1 + step) / (10 + step))
    expected = decay * expected + (1 - decay) * state.variables["params"]["head"]["kernel"]
  np.testing.assert_allclose(history[-1].average["head"]["kernel"], expected, rtol=1e-5)
  assert history[-1].for_inference["params"] is history[-1].average


def test_each_step_has_its_own_noise_and_the_same_one_again():
  one, other = (run(section(), Linear(noise=1.0))[0] for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, one[-1], other[-1])
  losses = [run(section(lr=0.0), Linear(noise=1.0), steps_=n)[1]["loss"] for n in (1, 2)]
  assert losses[0] != losses[1]


def test_a_loss_that_is_not_finite_changes_nothing_ever_after():
  optim, system, good = section(), Linear(), batch()
  bad = {**good, "y": good["y"].at[0, 0].set(jnp.nan)}
  params = system.init(None, good)["params"]
  optimizer = optimizers.make(optim, 100, params)
  state = states.init(system, optimizer, jax.random.key(0), good, averaged=False)
  train_step = jax.jit(steps.make(system, optimizer, optim, 100, seed=0))
  before, _ = train_step(state, good)
  after, metrics = train_step(before, bad)
  later, _ = train_step(after, good)
  assert not metrics["finite"] and not after.finite
  jax.tree.map(np.testing.assert_array_equal, before.replace(finite=False), jax.tree.map(np.asarray, later))


def test_schedule():
  schedule = optimizers.schedule(section(lr=2.0, warmup_steps=10, schedule="cosine", final_lr_ratio=0.1), 110)
  values = [float(schedule(s)) for s in (0, 5, 10, 60, 110)]
  np.testing.assert_allclose(values, [0.0, 1.0, 2.0, 1.1, 0.2], rtol=1e-6)
  linear = optimizers.schedule(section(lr=2.0, warmup_steps=10, schedule="linear"), 110)
  np.testing.assert_allclose([float(linear(s)) for s in (10, 60, 110)], [2.0, 1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("changes,message", [
    (dict(schedule="cosin"), "did you mean 'cosine'"),
    (dict(name="adam"), "did you mean 'adamw'"),
    (dict(rules=(("^head/", {}),)), "no optim rule matches 1 parameters, e.g. body/kernel"),
    (dict(rules=(("hed", {}), (".*", {}))), "match no parameter: 'hed'"),
    (dict(rules=((".*", dict(weight_decai=1.0)),)), "did you mean 'weight_decay'"),
])
def test_a_mistake_in_the_optimizer_is_told(changes, message):
  with pytest.raises(UserError, match=message):
    run(section(**changes), steps_=0)


def test_partition_rules_shard_parameters_and_what_mirrors_them():
  optim = section(ema_decay=0.9)
  system = Linear()
  params = jax.eval_shape(system.init, None, batch())["params"]
  optimizer = optimizers.make(optim, 100, params)
  shapes = jax.eval_shape(
      lambda: states.init(system, optimizer, jax.random.key(0), batch(), averaged=True))
  mesh = partition.make_mesh(dict(data=-1, fsdp=2, tensor=1))
  assert dict(mesh.shape) == dict(data=4, fsdp=2, tensor=1)
  rules = (("head/kernel", (None, "fsdp")), (".*", ()))
  shardings = partition.state_shardings(rules, shapes, mesh)
  specs = dict(zip(jax.tree.leaves(partition.names(shapes)), [s.spec for s in jax.tree.leaves(shardings)]))
  split = {name for name, spec in specs.items() if spec == P(None, "fsdp")}
  assert len(split) == 4  # parameter, average, two moments
  assert all(name.endswith("head/kernel") for name in split)


@pytest.mark.parametrize("sizes", [
    dict(data=3, fsdp=1, tensor=1), dict(data=-1, fsdp=-1, tensor=1), dict(data=-1, fsdp=3, tensor=1),
])
def test_a_mesh_that_does_not_fit_is_told(sizes):
  with pytest.raises(UserError, match="does not fit 8 devices"):
    partition.make_mesh(sizes)
