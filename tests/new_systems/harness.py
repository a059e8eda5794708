"""What every new system is put through: it trains, goes on bit for bit, on any mesh, and
compiles for a pod.
"""

import shutil
from unittest import mock

import jax
import numpy as np

from tests import contract
from vlx.compile import program, topologies
from vlx.core import checkpoint
from vlx.core.files import read_steps
from vlx.core.system import flatten
from vlx.evaluate.runner import Evaluation
from vlx.train import loop
from vlx.train.run import Run


def train(config, folder, **changes):
  """A run of a config with some changes; its evaluation with it."""
  run = Run(_changed(config, **changes), folder)
  loop.train(run, on_evaluate=Evaluation.of(run))
  return run


def go_on(run, folder, step):
  """A copy of a run that goes on from its checkpoint of `step`, as after a cut behind it."""
  shutil.copytree(run.workdir, folder)
  later = [p for p in (folder / "checkpoints").iterdir() if p.name.isdigit()]
  assert str(step) in {p.name for p in later}
  for path in later:
    if int(path.name) > step:
      shutil.rmtree(path)
  again = Run(run.requested, folder)
  loop.train(again)
  return again


def last_state(run):
  """Name → array of the last checkpoint and of what is frozen."""
  with (
    jax.set_mesh(run.mesh),
    checkpoint.open_manager(run.workdir / "checkpoints", read_only=True) as manager,
  ):
    _, state = checkpoint.restore_latest(manager, run.state_shapes)
    frozen = run.stored_frozen() if run.roles.frozen else {}
  return jax.tree.map(
    np.asarray, flatten(state) | {f"frozen/{n}": x for n, x in flatten(frozen).items()}
  )


def losses(run):
  return np.array(
    [
      [v for k, v in sorted(line.items()) if k.startswith("train/") and k.endswith("loss")]
      for line in read_steps(run.workdir / "metrics.jsonl")
    ]
  )


def exercise(config, folder, steps=4):
  """Trains `steps` steps in three ways, which must agree; gives the first run.

  All at once on eight devices; from its checkpoint half way on; with parameters split over four
  devices.
  """
  half = steps // 2
  common = {"steps": steps, "checkpoint.every": half, "checkpoint.keep": 2, "log_every": 1}
  with contract.shared_steps():
    whole = train(config, folder / "whole", **common)
    cut = go_on(whole, folder / "cut", half)
  lines = read_steps(cut.workdir / "metrics.jsonl")
  assert [line["step"] for line in lines] == [*range(1, steps + 1)]
  one, other = last_state(whole), last_state(cut)
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)
  sizes = {"mesh.data": 2, "mesh.fsdp": 4, "partition": ((r".*", "fsdp"),)}
  with mock.patch("vlx.core.partition.SMALL", 1):
    split = Run(_changed(config, **common, **sizes), folder / "split")
    loop.train(split)
    specs = [s.sharding.spec for s in split.variable_shapes.values()]
    assert any("fsdp" in spec for spec in specs)
  np.testing.assert_allclose(losses(split), losses(whole), rtol=2e-3)
  assert np.isfinite(losses(whole)).all() and len(losses(whole)) == steps
  return whole


def compiles_for_a_pod(config, **changes):
  """Compiles for v5e:4x4 in a process that has the compiler; gives what `vlx.compile` prints."""
  found = program.in_own_process(
    _changed(config, **{"steps": 100, "mesh.data": 4, "mesh.fsdp": 4, **changes}),
    topologies.parse("v5e:4x4"),
  )
  assert found["fits"]
  return found


def _changed(config, **changes):
  found = config.copy_and_resolve_references().unlock()
  found.update_from_flattened_dict(changes)
  return found.lock()
