"""Streams: their shares, their place in a batch, whole runs over them."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlx.core import partition
from vlx.core.errors import UserError
from vlx.core.files import read_steps
from vlx.core.system import Aux, Term
from vlx.data.streams import Streams
from vlx.evaluate.data import Data
from vlx.evaluate.runner import Evaluation
from vlx.evaluate.tasks.loss import HeldOutLoss
from vlx.model import Model
from vlx.train import defaults, loop
from vlx.train.run import Run

SHAPE = jax.ShapeDtypeStruct
MESH = partition.make_mesh(dict(data=-1, fsdp=1, tensor=1))


class Numbers:
  """The numbers from a first one on; "numbers:FIRST"."""

  def __init__(self, place, split):
    self.first = float(place)

  def __len__(self):
    return 10

  def __getitem__(self, index):
    return {"number": np.float32(self.first + index)}

  def name(self, index):
    return f"number {index}"


@dataclasses.dataclass(frozen=True)
class TakingTurns:
  """Means of two tasks: of numbers and of their squares."""

  def inputs(self):
    return {"number": SHAPE((), jnp.float32), "task": SHAPE((), jnp.int32)}

  def init(self, rng):
    return {"params": {"means": jnp.zeros(2)}, "state": {}}

  def loss(self, variables, batch, rng, *, step, train, frozen):
    means = variables["params"]["means"]
    first = lambda x: jnp.sum((x - means[0]) ** 2)
    second = lambda x: jnp.sum((x**2 - means[1]) ** 2)
    task = batch["task"][0]
    total = jax.lax.switch(task, (first, second), batch["number"])
    return {"squares": Term(total, len(batch["number"]))}, Aux({"task": task}, {})

  def accumulates(self):
    return ""


@dataclasses.dataclass(frozen=True)
class AllAtOnce(TakingTurns):
  """The same, of a batch that has both."""

  def inputs(self):
    return {
      "plain": {"number": SHAPE((), jnp.float32)},
      "squared": {"number": SHAPE((), jnp.float32)},
    }

  def loss(self, variables, batch, rng, *, step, train, frozen):
    means, plain, squared = (
      variables["params"]["means"],
      batch["plain"]["number"],
      batch["squared"]["number"],
    )
    terms = {
      "plain": Term(jnp.sum((plain - means[0]) ** 2), len(plain)),
      "squared": Term(jnp.sum((squared**2 - means[1]) ** 2), len(squared), 2.0),
    }
    return terms, Aux({}, {})


def config(system, mixture, **streams):
  found = defaults.get_config()
  found.system = f"{system.__module__}.{system.__name__}"
  found.steps, found.log_every = 12, 1
  found.data.update(dict(batch_size=8, preprocess='keep("number")', mixture=mixture))
  found.data.streams = {
    "plain": dict(source=f"{__name__}.Numbers:0", **streams.get("plain", {})),
    "squared": dict(source=f"{__name__}.Numbers:5", **streams.get("squared", {})),
  }
  found.optim.update(dict(lr=0.05, schedule="constant", rules=(), clip_norm=0.0))
  return found


def trained(config, folder):
  run = Run(config, folder)
  loop.train(run, on_evaluate=Evaluation.of(run))
  return run, read_steps(folder / "metrics.jsonl")


@pytest.mark.parametrize("start", (0, 37))
def test_shares_hold_in_every_stretch(tmp_path, start):
  run = Run(config(TakingTurns, "by_step", plain={"weight": 3.0}), tmp_path)
  tasks = collections.Counter(
    int(run.batches[step]["task"][0]) for step in range(start, start + 40)
  )
  assert tasks == {0: 30, 1: 10}


def test_a_batch_is_a_function_of_the_step_and_each_stream_has_epochs_of_its_own(tmp_path):
  run = Run(config(TakingTurns, "by_step"), tmp_path / "one")
  again = Run(config(TakingTurns, "by_step"), tmp_path / "other")
  late = again.batches[9]
  np.testing.assert_array_equal(run.batches[9]["number"], late["number"])
  by_task = collections.defaultdict(list)
  for step in range(10):
    batch = run.batches[step]
    assert len(set(batch["task"])) == 1
    by_task[int(batch["task"][0])].extend(batch["number"].tolist())
  for task, first in ((0, 0.0), (1, 5.0)):  # five batches of eight: four epochs of ten
    epochs = np.sort(np.reshape(by_task[task], (4, 10)), axis=1)
    np.testing.assert_array_equal(epochs, np.tile(first + np.arange(10.0), (4, 1)))
  assert by_task[0] != [x - 5.0 for x in by_task[1]]


def test_a_run_takes_turns(tmp_path):
  run, lines = trained(config(TakingTurns, "by_step"), tmp_path)
  assert [line["train/task"] for line in lines] == [
    int(run.batches[s]["task"][0]) for s in range(12)
  ]
  assert "Numbers:0 (train) and" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("accumulate", (1, 2))
def test_a_batch_of_each_gives_the_loss_of_both(tmp_path, accumulate):
  found = config(AllAtOnce, "all", plain={"batch_size": 16}, squared={"batch_size": 32})
  found.optim.accumulate = accumulate
  run, lines = trained(found, tmp_path)
  batch = run.batches[0]
  assert batch["plain/number"].shape == (16,) and batch["squared/number"].shape == (32,)
  expected = np.mean(batch["plain/number"] ** 2) + 2 * np.mean(batch["squared/number"] ** 4)
  np.testing.assert_allclose(lines[0]["train/loss"], expected, rtol=1e-5)
  assert run.streams.batch_size == 48


@pytest.mark.parametrize(
  "changes, message",
  (
    ({"plain": {"wait": 1.0}}, "data.streams.plain has no 'wait', did you mean 'weight'"),
    ({"plain": {"weight": 0.0}}, "data.streams.plain.weight is 0.0, not above 0"),
    ({"plain": {"batch_size": 16}}, "must have the same batch_size"),
  ),
)
def test_a_mistake_is_told(changes, message):
  with pytest.raises(UserError, match=message):
    Streams.of(config(TakingTurns, "by_step", **changes).data)


def test_a_source_that_nobody_gives_is_told(tmp_path):
  found = config(TakingTurns, "by_step")
  found.data.streams.plain.source = None
  with pytest.raises(UserError, match="no data source is set; give --config.data.source"):
    Run(found, tmp_path).batches[0]


def test_the_only_named_stream_is_a_task_too(tmp_path):
  found = config(TakingTurns, "by_step")
  del found.data.streams["squared"]
  np.testing.assert_array_equal(Run(found, tmp_path).batches[0]["task"], np.zeros(8))


def held_out(system, **fields):
  data = Data(f"{__name__}.Numbers:5", None, "")
  model = Model(system, {"params": {"means": jnp.array([1.0, 2.0])}, "state": {}}, None, "", MESH)
  with jax.set_mesh(MESH):
    return HeldOutLoss(("val",), **fields)(model, data).measures


def test_the_held_out_loss_of_a_task():
  numbers = 5 + np.arange(10.0)
  for task, values in enumerate(((numbers - 1) ** 2, (numbers**2 - 2) ** 2)):
    mean = pytest.approx(values.mean())
    assert held_out(TakingTurns(), task=task) == {"val/squares": mean, "val/loss": mean}


def test_streams_at_once_have_no_held_out_loss():
  with pytest.raises(UserError, match="has no loss on one split"):
    held_out(AllAtOnce())


def test_an_unknown_mixture_is_told():
  with pytest.raises(UserError, match="data.mixture is 'by_steps', did you mean 'by_step'"):
    Streams.of(config(TakingTurns, "by_steps").data)
