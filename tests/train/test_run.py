"""Whole runs of configs/clip.py:smoke: the same bits twice, resumed as uninterrupted, faults."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from vlx import cli
from vlx.core.errors import UserError
from vlx.evaluate import runner as evaluators
from vlx.train import defaults, loop
from vlx.core import checkpoint
from vlx.train.logging import read_metrics
from vlx.train.run import Run, open_run


def config(**changes):
  found = configs.load_config("configs/clip.py:smoke")
  # Evaluation has tests of its own; one split keeps these short.
  del_splits = {"evaluators.retrieval.splits": ("combo",), "evaluators.retrieval.gallery": ("combo",)}
  found.update_from_flattened_dict({**del_splits, **changes})
  return found


def last_state(run):
  with jax.set_mesh(run.mesh), checkpoint.open_manager(run.workdir / "checkpoints", read_only=True) as m:
    step, state = checkpoint.restore_latest(m, run.state_shapes)
  return step, jax.tree.map(np.asarray, state)


def assert_same_bits(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  run = Run(config(), tmp_path_factory.mktemp("runs") / "whole")
  loop.train(run)
  return run


def test_a_run_leaves_what_it_promises(finished):
  names = {p.name for p in finished.workdir.iterdir()}
  assert names >= {
      "config.json", "checkpoints", "metrics.jsonl", "results.json", "samples", "report.html",
      "tensorboard", "tokenizer.json",
  }
  lines = read_metrics(finished.workdir)
  assert [line["step"] for line in lines] == list(range(1, 9))
  assert all({"train/loss", "train/lr", "examples_per_second"} <= set(line) for line in lines)
  results = json.loads((finished.workdir / "results.json").read_text())
  assert 0 <= results["retrieval/combo/image_to_text_r1"] <= 100
  assert lines[-1]["retrieval/combo/image_to_text_r1"] == results["retrieval/combo/image_to_text_r1"]
  page = (finished.workdir / "report.html").read_text()
  assert "retrieval/combo/image_to_text_r1" in page and page.count("data:image/png") >= 3


def test_the_same_config_gives_the_same_bits_twice(finished, tmp_path):
  again = Run(config(), tmp_path / "again")
  loop.train(again)
  step, state = last_state(again)
  assert step == 8
  assert_same_bits(state, last_state(finished)[1])


class Interrupted(Exception):
  pass


def test_a_run_cut_off_goes_on_to_the_same_bits(finished, tmp_path, monkeypatch):
  """Cut at step 6, two steps after the last checkpoint; the same command again."""
  changes = {"checkpoint.every": 4}
  whole = Run(config(**changes), tmp_path / "cut")
  compiled = loop.compile_step

  def cut(run):
    step = compiled(run)

    def until_six(state, batch):
      if int(state.step) == 6:
        raise Interrupted
      return step(state, batch)

    return until_six

  with monkeypatch.context() as m:
    m.setattr(loop, "compile_step", cut)
    with pytest.raises(Interrupted):
      loop.train(whole)
  assert [line["step"] for line in read_metrics(whole.workdir)][-1] >= 4
  loop.train(Run(config(**changes), tmp_path / "cut"))
  assert_same_bits(last_state(whole)[1], last_state(finished)[1])
  lines = {line["step"]: line["train/loss"] for line in read_metrics(whole.workdir)}
  expected = {line["step"]: line["train/loss"] for line in read_metrics(finished.workdir)}
  assert lines == expected and len(read_metrics(whole.workdir)) == 8


def test_sigterm_saves_and_says_how_to_go_on(tmp_path):
  script = (
      "import os, signal\n"
      "from vlx import cli\n"
      "from vlx.train import loop\n"
      "from vlx.train.run import Run\n"
      "import pathlib\n"
      "config = configs.load_config('configs/clip.py:smoke')\n"
      "config.steps = 100000\n"
      "write = loop.MetricsLog.write\n"
      "def stop_at_three(self, step, values):\n"
      "  write(self, step, values)\n"
      "  if step == 3: os.kill(os.getpid(), signal.SIGTERM)\n"
      "loop.MetricsLog.write = stop_at_three\n"
      f"loop.train(Run(config, pathlib.Path({str(tmp_path)!r})))\n"
  )
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  assert "the same command goes on from there" in done.stdout
  step = int(done.stdout.split("stopped at step ")[1].split()[0])
  assert last_state(open_run(str(tmp_path)))[0] == step


def test_a_loss_that_is_not_finite_stops_with_the_state_from_before(tmp_path, monkeypatch):
  run = Run(config(steps=6), tmp_path / "nan")
  system = type(run.system)
  real = system.loss

  def poisoned(self, variables, batch, rng, *, step, train):
    loss, aux = real(self, variables, batch, rng, step=step, train=train)
    return loss * jax.numpy.where(step == 3, jax.numpy.nan, 1.0), aux

  monkeypatch.setattr(system, "loss", poisoned)
  with pytest.raises(FloatingPointError, match="step 3.*Its examples"):
    loop.train(run)
  step, state = last_state(run)
  assert step == 3 and state.step == 3 and state.finite
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.variables))


def test_evaluation_of_a_finished_run_gives_its_results_again(finished):
  run = open_run(str(finished.workdir))
  with jax.set_mesh(run.mesh), checkpoint.open_manager(run.workdir / "checkpoints", read_only=True) as m:
    _, state = checkpoint.restore_latest(m, run.state_shapes)
    results = evaluators.evaluate(run, state.for_inference, pictures=False)
  assert results == json.loads((run.workdir / "results.json").read_text())


@pytest.mark.slow
def test_one_device_and_eight_train_alike(finished, tmp_path):
  """Losses of the smoke run on one device and on data 4 x fsdp 2, parameters split."""
  rules = ((r"(fc1|query|key|value)/kernel", (None, "fsdp")), (".*", ()))
  split = Run(config(**{"mesh.data": 4, "mesh.fsdp": 2, "partition": rules}), tmp_path / "split")
  loop.train(split)
  one, other = (
      [line["train/loss"] for line in read_metrics(r.workdir)] for r in (finished, split))
  np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.slow
def test_twenty_steps_are_the_same_on_any_mesh(tmp_path):
  """Parameters split over `fsdp` and `tensor` by the published sizes' rules."""
  losses = {}
  for name, sizes in {
      "data": dict(data=8), "fsdp": dict(data=1, fsdp=8), "both": dict(data=4, fsdp=2),
      "tensor": dict(data=4, tensor=2), "all": dict(data=2, fsdp=2, tensor=2),
  }.items():
    changes = {f"mesh.{axis}": size for axis, size in sizes.items()}
    run = Run(config(steps=20, partition=defaults.TRANSFORMER_PARTITION, **changes), tmp_path / name)
    loop.train(run)
    losses[name] = [line["train/loss"] for line in read_metrics(run.workdir)]
    assert len(losses[name]) == 20
    np.testing.assert_allclose(losses[name], losses["data"], rtol=1e-6, err_msg=name)


def test_a_folder_of_another_config_is_left_alone(finished):
  before = sorted((p.name, p.stat().st_mtime_ns) for p in finished.workdir.rglob("*"))
  with pytest.raises(UserError, match="another config \\(optim.lr: 0.001 → 0.5\\)"):
    loop.train(Run(config(**{"optim.lr": 0.5}), finished.workdir))
  assert before == sorted((p.name, p.stat().st_mtime_ns) for p in finished.workdir.rglob("*"))


def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(tmp_path, caplog):
  run = Run(config(**{"checkpoint.every": 4, "checkpoint.keep": 2}), tmp_path / "damaged")
  loop.train(run)
  steps = sorted(int(p.name) for p in (run.workdir / "checkpoints").iterdir())
  assert steps == [4, 8]
  for path in (run.workdir / "checkpoints" / "8" / "default").rglob("*"):
    if path.is_file() and "_METADATA" not in path.name:
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  assert last_state(run)[0] == 4
  assert "checkpoint 8 cannot be read" in caplog.text
  loop.train(run)  # makes steps 5 to 8 again
  assert last_state(run)[0] == 8
  assert (run.workdir / "checkpoints" / "damaged-8").is_dir()
  for step in ("4", "8"):
    for path in (run.workdir / "checkpoints" / step / "default").rglob("*"):
      if path.is_file():
        path.write_bytes(b"")
  with pytest.raises(UserError, match="none of the checkpoints"):
    last_state(run)


def test_a_checkpoint_of_another_model_names_every_mismatch(finished, tmp_path):
  other = Run(config(**{"model.embed_dim": 16, "model.loss_type": "sigmoid"}), tmp_path)
  with jax.set_mesh(other.mesh), checkpoint.open_manager(finished.workdir / "checkpoints", read_only=True) as m:
    with pytest.raises(UserError) as error:
      checkpoint.restore_latest(m, other.state_shapes)
  for name in ("logit_bias: nothing saved", "image_projection/kernel", "text_projection/kernel"):
    assert f"variables/params/{name}" in str(error.value)
