"""Optimizer rules, freezing, clipping, accumulation, averages, players, partition rules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from vlx.core import partition
from vlx.core import system as systems
from vlx.core.errors import UserError
from vlx.core.system import Aux, Term, flatten
from vlx.train import defaults
from vlx.train import optimizer as optimizers
from vlx.train import step as steps

SHAPE = jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True)
class Linear:
  """Least squares over the rows that a mask keeps; counts its calls in `state`."""

  noise: float = 0.0

  def inputs(self):
    return {"x": SHAPE((3,), jnp.float32), "y": SHAPE((2,), jnp.float32)}

  def init(self, rng):
    params = {
      "head": {"kernel": jnp.full((3, 2), 0.5), "bias": jnp.zeros(2)},
      "body": {"kernel": jnp.eye(3)},
    }
    return {"params": params, "state": {"count": {"calls": jnp.zeros(())}}}

  def loss(self, variables, batch, rng, *, step, train, frozen):
    p = variables["params"]
    x = batch["x"] @ p["body"]["kernel"] @ p["head"]["kernel"] + p["head"]["bias"]
    x = x + self.noise * jax.random.normal(rng, x.shape)
    squares = ((x - batch["y"]) ** 2).mean(axis=1)
    seen = batch["x"][:, 0] > -0.5
    terms = {
      "all": Term(squares.sum(), len(x)),
      "seen": Term(jnp.sum(squares, where=seen), seen.sum(), 0.5),
    }
    calls = variables["state"]["count"]["calls"] + 1
    return terms, Aux({"absent": (~seen).mean()}, {"count": {"calls": calls}})

  def accumulates(self):
    return ""


def batch(rows=8):
  rng = np.random.default_rng(0)
  return {k: jnp.asarray(rng.normal(size=(rows, n)), jnp.float32) for k, n in (("x", 3), ("y", 2))}


def section(**changes):
  optim = defaults.get_config().optim
  optim.update(dict(lr=0.1, schedule="constant", rules=(), clip_norm=0.0))
  optim.update(changes)
  return optim


def prepared(optim, system=Linear()):
  """(state, what is frozen, the step)."""
  return steps.begin(system, optim, steps=100)


def run(optim, system=Linear(), steps_=5, data=None):
  data = data or batch()
  state, frozen, train_step = prepared(optim, system)
  history, metrics = [jax.tree.map(jnp.copy, state)], {}
  for _ in range(steps_):
    state, metrics = train_step(state, frozen, data)
    history.append(jax.tree.map(jnp.copy, state))
  return history, metrics


def test_a_frozen_parameter_does_not_move_by_a_bit_and_has_no_moments():
  optim = section(rules=((r"body/.*", dict(frozen=True)),), weight_decay=0.1, ema_decay=0.9)
  history, metrics = run(optim)
  state, frozen, _ = prepared(optim)
  assert set(flatten(frozen)) == {"params/body/kernel"}
  assert not [name for name in flatten(history[-1]) if "body" in name]
  first, last = (h.variables["params"] for h in (history[0], history[-1]))
  assert (first["head"]["kernel"] != last["head"]["kernel"]).all()
  sizes = [x.size for x in jax.tree.leaves(history[-1].optimizer)]
  assert sorted(sizes)[-2:] == [6, 6]  # moments of the head alone
  # And its gradient is not in the norm.
  params = Linear().init(None)["params"]
  grads = jax.grad(
    lambda head: systems.total(
      Linear().loss(
        {"params": {**params, "head": head}, "state": {"count": {"calls": 0.0}}},
        batch(),
        jax.random.key(0),
        step=0,
        train=True,
        frozen=frozenset({"body", "body/kernel"}),
      )[0]
    )
  )(params["head"])
  norm = run(optim, steps_=1)[1]["grad_norm"]
  np.testing.assert_allclose(norm, optax.tree.norm(grads), rtol=1e-6)


def test_learning_rate_rules_scale_the_update():
  whole, _ = run(section(name="sgd", b1=0.0), steps_=1)
  tenth, _ = run(section(name="sgd", b1=0.0, rules=((r"head/.*", dict(lr_scale=0.1)),)), steps_=1)
  moved = lambda h: jax.tree.map(
    lambda a, b: a - b, h[1].variables["params"], h[0].variables["params"]
  )
  np.testing.assert_allclose(
    moved(tenth)["head"]["kernel"], 0.1 * moved(whole)["head"]["kernel"], rtol=1e-4, atol=1e-7
  )
  np.testing.assert_array_equal(moved(tenth)["body"]["kernel"], moved(whole)["body"]["kernel"])


def test_clipping_bounds_the_update():
  data = {"x": batch()["x"] * 100, "y": batch()["y"]}
  history, metrics = run(section(name="sgd", b1=0.0, lr=1.0, clip_norm=0.5), steps_=1, data=data)
  moved = jax.tree.map(
    lambda a, b: a - b, history[1].variables["params"], history[0].variables["params"]
  )
  assert metrics["grad_norm"] > 100
  np.testing.assert_allclose(optax.tree.norm(moved), 0.5, rtol=1e-4)


def test_accumulation_is_exact_also_where_parts_count_differently():
  whole, one = run(section())
  parts, other = run(section(accumulate=4))
  seen = np.asarray(batch()["x"][:, 0] > -0.5).reshape(-1, 4).sum(axis=0)
  assert len(set(seen.tolist())) > 1  # else the test would say nothing
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    whole[-1].variables["params"],
    parts[-1].variables["params"],
  )
  for name in ("loss", "all", "seen", "grad_norm", "absent"):
    np.testing.assert_allclose(one[name], other[name], rtol=1e-5, err_msg=name)
  # the state passes through the parts
  assert parts[-1].variables["state"]["count"]["calls"] == 4 * 5


def test_average_of_parameters():
  history, _ = run(section(ema_decay=0.9), steps_=3)
  expected = history[0].variables["params"]["head"]["kernel"]
  for step, state in enumerate(history[1:]):
    decay = min(0.9, (1 + step) / (10 + step))
    expected = decay * expected + (1 - decay) * state.variables["params"]["head"]["kernel"]
  np.testing.assert_allclose(history[-1].average["head"]["kernel"], expected, rtol=1e-5)
  jax.tree.map(
    np.testing.assert_array_equal, history[-1].for_inference["params"], history[-1].average
  )


def test_what_no_average_is_kept_of_is_itself_in_inference():
  history, _ = run(section(ema_decay=0.9, rules=((r"body/.*", dict(average=False)),)), steps_=3)
  state, params = history[-1], history[-1].for_inference["params"]
  assert "body" not in state.average
  np.testing.assert_array_equal(
    params["body"]["kernel"], state.variables["params"]["body"]["kernel"]
  )
  np.testing.assert_array_equal(params["head"]["kernel"], state.average["head"]["kernel"])


def test_each_step_has_its_own_noise_and_the_same_one_again():
  one, other = (run(section(), Linear(noise=1.0))[0] for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, one[-1], other[-1])
  losses = [run(section(lr=0.0), Linear(noise=1.0), steps_=n)[1]["loss"] for n in (1, 2)]
  assert losses[0] != losses[1]


def test_a_loss_that_is_not_finite_changes_nothing_ever_after():
  good = batch()
  bad = {**good, "y": good["y"].at[0, 0].set(jnp.nan)}
  state, frozen, train_step = prepared(section())
  before, _ = train_step(state, frozen, good)
  kept = jax.tree.map(jnp.copy, before)
  after, metrics = train_step(before, frozen, bad)
  assert not metrics["finite"] and not after.finite
  later, _ = train_step(after, frozen, good)
  jax.tree.map(
    np.testing.assert_array_equal, kept.replace(finite=False), jax.tree.map(np.asarray, later)
  )


def test_schedule():
  schedule = optimizers.schedule(
    section(lr=2.0, warmup_steps=10, schedule="cosine", final_lr_ratio=0.1), 110
  )
  values = [float(schedule(s)) for s in (0, 5, 10, 60, 110)]
  np.testing.assert_allclose(values, [0.0, 1.0, 2.0, 1.1, 0.2], rtol=1e-6)
  linear = optimizers.schedule(section(lr=2.0, warmup_steps=10, schedule="linear"), 110)
  np.testing.assert_allclose([float(linear(s)) for s in (10, 60, 110)], [2.0, 1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(schedule="cosin"), "did you mean 'cosine'"),
    (dict(name="adam"), "did you mean 'adamw'"),
    (dict(rules=(("hed/.*", {}),)), "match no parameter: 'hed/"),
    (dict(rules=(("kernel", {}),)), "match no parameter: 'kernel'"),  # the whole path must match
    (dict(rules=((".*", dict(weight_decai=1.0)),)), "did you mean 'weight_decay'"),
    (dict(rules=((".*", dict(dtype="bfloat16")),)), "it learns: only frozen parameters have one"),
  ],
)
def test_a_mistake_in_the_optimizer_is_told(changes, message):
  with pytest.raises(UserError, match=message):
    run(section(**changes), steps_=0)


def test_later_rules_change_what_earlier_ones_left_field_by_field():
  optim = section(
    weight_decay=0.1,
    rules=(
      (r".*bias", dict(weight_decay=0.0)),
      (r"head/.*", dict(lr_scale=0.5)),
      (r"head/kernel", dict(lr_scale=2.0)),
    ),
  )
  found = optimizers.learning(optim, Linear().init(None)["params"], Linear())
  seen = {path: (one.lr_scale, one.weight_decay) for path, one in found.items()}
  assert seen == {"head/kernel": (2.0, 0.1), "head/bias": (0.5, 0.0), "body/kernel": (1.0, 0.1)}


@dataclasses.dataclass(frozen=True)
class Whole:
  """A system with a part."""

  inner: Linear = Linear()

  def init(self, rng):
    return {"params": {"own": jnp.ones(2)}, "state": {}}

  def inputs(self):
    return self.inner.inputs()

  def loss(self, variables, batch, rng, *, step, train, frozen):
    inner = systems.part(variables, "inner")
    terms, aux = self.inner.loss(inner, batch, rng, step=step, train=train, frozen=frozen)
    terms = {**terms, "own": Term((variables["params"]["own"] ** 2).sum(), 1)}
    return terms, Aux(aux.metrics, {"inner": aux.state})

  def accumulates(self):
    return ""


def test_a_part_is_frozen_unless_a_rule_names_it():
  frozen = lambda *rules: {
    path
    for path, one in optimizers.learning(
      section(rules=rules), systems.init(Whole(), jax.random.key(0))["params"], Whole()
    ).items()
    if one.frozen
  }
  inner = {"inner/head/kernel", "inner/head/bias", "inner/body/kernel"}
  assert frozen() == inner
  assert frozen((r".*bias", dict(weight_decay=0.0))) == inner  # a rule for all does not name it
  assert frozen((r"inner/.*", {})) == set()
  assert frozen((r"inner/head/.*", {})) == {"inner/body/kernel"}


def test_the_state_of_a_frozen_part_rests_and_that_of_one_that_learns_moves():
  history, _ = run(section(), Whole(), steps_=2)
  assert "state/inner/count/calls" not in flatten(history[-1].variables)
  moving, _ = run(section(rules=((r"inner/.*", {}),)), Whole(), steps_=2)
  assert flatten(moving[-1].variables)["state/inner/count/calls"] == 2


@dataclasses.dataclass(frozen=True)
class Game:
  """Two players of one number each, x and y: x descends (x - y)², y ascends it; each counts the
  turns it sees.
  """

  players = {"first": r"first/.*", "second": r"second/.*"}

  def init(self, rng):
    return {
      "params": {"first": {"x": jnp.ones(())}, "second": {"y": jnp.zeros(())}},
      "state": {
        "batch_stats": {"first": {"turns": jnp.zeros(())}, "second": {"turns": jnp.zeros(())}}
      },
    }

  def inputs(self):
    return Linear().inputs()

  def loss(self, variables, batch, rng, *, step, train, frozen, player):
    p, turns = variables["params"], variables["state"]["batch_stats"]
    gap = (p["first"]["x"] - p["second"]["y"]) ** 2
    sign = {"first": 1, "second": -1}[player]
    state = {"batch_stats": jax.tree.map(lambda n: n + 1, turns)}
    return {"gap": Term(sign * gap, 1)}, Aux(
      {"x": p["first"]["x"], "noise": jax.random.normal(rng)}, state
    )

  def accumulates(self):
    return ""


def test_players_act_in_turn_and_each_moves_its_own_alone():
  optim = section(name="sgd", b1=0.0, players=dict(second=dict(lr=0.01, ema_decay=0.9)))
  history, metrics = run(optim, Game(), steps_=1)
  params = history[1].variables["params"]
  np.testing.assert_allclose(params["first"]["x"], 1 - 0.1 * 2)
  # sees the x that is new
  np.testing.assert_allclose(params["second"]["y"], 0 - 0.01 * 2 * 0.8, rtol=1e-6)
  np.testing.assert_allclose(metrics["second/x"], 0.8)
  assert metrics["first/noise"] != metrics["second/noise"]
  # Each turn counted both, and kept its own player's count.
  assert {float(n) for n in flatten(history[1].variables["state"]).values()} == {1.0}
  assert set(flatten(history[1].average)) == {"second/y"}
  np.testing.assert_allclose(metrics["first/lr"], 0.1)
  np.testing.assert_allclose(metrics["second/lr"], 0.01)


def test_a_player_that_is_not_there_is_told():
  with pytest.raises(UserError, match="no optim.players.secnd: did you mean 'second'"):
    run(section(players=dict(secnd={})), Game(), steps_=0)
  with pytest.raises(UserError, match="no optim.players.first.lrr: did you mean 'lr'"):
    run(section(players=dict(first=dict(lrr=1.0))), Game(), steps_=0)


def test_a_parameter_has_one_player():
  class Two(Game):
    players = {"first": r".*", "second": r"second/.*"}

  with pytest.raises(UserError, match="second/y belongs to first and second"):
    run(section(), Two(), steps_=0)


def test_partition_by_size_splits_the_largest_axis_and_never_the_depth():
  mesh = partition.make_mesh(dict(data=1, fsdp=8, tensor=1))
  shape = lambda *s: SHAPE(s, jnp.float32)
  params = {
    "blocks": {"kernel": shape(64, 48, 32)},
    "embedding": shape(1000, 64),
    "odd": shape(1001, 63),
    "bias": shape(64),
  }
  specs = {
    n: s.spec for n, s in flatten(partition.shardings(((".*", "fsdp"),), params, mesh)).items()
  }
  assert specs == {
    "blocks/kernel": P(None, "fsdp", None),
    "embedding": P("fsdp", None),
    "odd": P(),
    "bias": P(),
  }


def test_a_mesh_that_does_not_divide_a_parameter_is_told():
  mesh = partition.make_mesh(dict(data=1, fsdp=8, tensor=1))
  with pytest.raises(UserError, match=r"does not divide head \[3, 2\]"):
    partition.shardings((("head", ("fsdp",)),), {"head": SHAPE((3, 2), jnp.float32)}, mesh)


@pytest.mark.parametrize(
  "sizes",
  [
    dict(data=3, fsdp=1, tensor=1),
    dict(data=-1, fsdp=-1, tensor=1),
    dict(data=-1, fsdp=3, tensor=1),
  ],
)
def test_a_mesh_that_does_not_fit_is_told(sizes):
  with pytest.raises(UserError, match="does not fit 8 devices"):
    partition.make_mesh(sizes)
