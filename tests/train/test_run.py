"""Whole runs of configs/clip.py:smoke: the same bits twice, resumed as uninterrupted, faults."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

import vlx
from tests import contract
from vlx.core import checkpoint
from vlx.core import config as configs
from vlx.core.errors import UserError
from vlx.core.files import read_steps
from vlx.evaluate.runner import Evaluation
from vlx.train import defaults, loop
from vlx.train.run import Run, open_run


@pytest.fixture(scope="module", autouse=True)
def shared_steps():
  with contract.shared_steps():
    yield


def read_metrics(workdir):
  return read_steps(workdir / "metrics.jsonl")


def config(**changes):
  found = configs.load_config("configs/clip.py:smoke")
  # Evaluation has tests of its own; one split keeps these short.
  del_splits = {
    "evaluators.retrieval.splits": ("combo",),
    "evaluators.retrieval.gallery": ("combo",),
  }
  found.update_from_flattened_dict({**del_splits, **changes})
  return found


def last_state(run):
  with (
    jax.set_mesh(run.mesh),
    checkpoint.open_manager(run.workdir / "checkpoints", read_only=True) as m,
  ):
    step, state = checkpoint.restore_latest(m, run.state_shapes)
  return step, jax.tree.map(np.asarray, state)


def assert_same_bits(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  run = Run(config(), tmp_path_factory.mktemp("runs") / "whole")
  loop.train(run, on_evaluate=Evaluation.of(run))
  return run


def new_run(finished, folder, **changes):
  """A run in a new folder, with the tokenizer that it would make anew there."""
  folder.mkdir()
  shutil.copy(finished.workdir / "tokenizer.json", folder)
  return Run(config(**changes), folder)


def test_a_run_leaves_what_it_promises(finished):
  names = {p.name for p in finished.workdir.iterdir()}
  assert names >= {
    "config.json",
    "checkpoints",
    "metrics.jsonl",
    "results.json",
    "figures",
    "report.html",
    "tensorboard",
    "tokenizer.json",
  }
  lines = read_metrics(finished.workdir)
  assert [line["step"] for line in lines] == list(range(1, 9))
  assert all({"train/loss", "train/lr", "examples_per_second"} <= set(line) for line in lines)
  results = json.loads((finished.workdir / "results.json").read_text())["measures"]
  assert 0 <= results["retrieval/combo/image_to_text_r1"] <= 100
  assert (
    lines[-1]["retrieval/combo/image_to_text_r1"] == results["retrieval/combo/image_to_text_r1"]
  )
  page = (finished.workdir / "report.html").read_text()
  assert "retrieval/combo/image_to_text_r1" in page and page.count("data:image/png") >= 3


def test_the_same_config_gives_the_same_bits_twice(finished, tmp_path):
  again = new_run(finished, tmp_path / "again")
  loop.train(again)
  step, state = last_state(again)
  assert step == 8
  assert_same_bits(state, last_state(finished)[1])


def test_a_finished_run_started_again_logs_its_last_step_once(finished):
  before = read_metrics(finished.workdir)
  loop.train(Run(config(), finished.workdir), on_evaluate=Evaluation.of(finished))
  after = read_metrics(finished.workdir)
  assert [line["step"] for line in after] == list(range(1, 9))
  assert after[-1].keys() == before[-1].keys()


def test_damaged_lines_of_a_log_are_passed_over(finished, tmp_path, caplog):
  shutil.copytree(finished.workdir, tmp_path / "run")
  path = tmp_path / "run" / "metrics.jsonl"
  lines = path.read_bytes().split(b"\n")
  strange = (b"\xff\xfe", b"[1]", b'{"step": "x"}', b'{"loss": 1.0}', b'{"step": 3, "a": []}', b"{")
  path.write_bytes(b"\n".join([*lines[:4], *strange, *lines[4:]]))
  run = Run(config(), tmp_path / "run")
  loop.train(run)
  assert "6 damaged lines" in caplog.text
  assert [line["step"] for line in read_metrics(run.workdir)] == list(range(1, 9))


def test_a_folder_that_is_removed_meanwhile_is_told(finished, tmp_path, monkeypatch):
  run = new_run(finished, tmp_path / "run", **{"checkpoint.every": 2})
  compiled = loop.compile_step

  def removing(run):
    shutil.rmtree(run.workdir)
    return compiled(run)

  monkeypatch.setattr(loop, "compile_step", removing)
  with pytest.raises(UserError, match="was removed while it was trained in"):
    loop.train(run)


@pytest.mark.parametrize("kind", ("link", "folder", "pipe"))
def test_a_runs_folder_leads_nowhere_else(finished, tmp_path, kind):
  """Who got it from somebody else loses no file, shows none, and does not wait for ever."""
  shutil.copytree(finished.workdir, tmp_path / "run")
  (tmp_path / "secret.png").write_bytes(b"mine")
  strange = tmp_path / "run" / "figures" / "strange.png"
  match kind:
    case "link":
      strange.symlink_to(tmp_path / "secret.png")
    case "folder":
      shutil.rmtree(strange.parent)
      strange.parent.symlink_to(tmp_path)
    case "pipe":
      os.mkfifo(strange)
  with pytest.raises(UserError, match="leads out of the folder|neither a file nor a folder"):
    loop.train(Run(config(), tmp_path / "run"))
  assert (tmp_path / "secret.png").read_bytes() == b"mine"


class Interrupted(Exception):
  pass


def test_a_run_cut_off_goes_on_to_the_same_bits(finished, tmp_path, monkeypatch):
  """Cut at step 6, two steps after the last checkpoint; the same command again."""
  changes = {"checkpoint.every": 4}
  whole = new_run(finished, tmp_path / "cut", **changes)
  compiled = loop.compile_step

  def cut(run):
    step = compiled(run)

    def until_six(state, frozen, batch):
      if int(state.step) == 6:
        raise Interrupted
      return step(state, frozen, batch)

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


def test_sigterm_saves_and_says_how_to_go_on(finished, tmp_path, monkeypatch, capsys):
  run = new_run(finished, tmp_path / "run")
  write = loop.MetricsLog.write

  def stop_at_three(self, step, values):
    write(self, step, values)
    if step == 3:
      for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)

  monkeypatch.setattr(loop.MetricsLog, "write", stop_at_three)
  missed = []
  before = signal.signal(signal.SIGTERM, lambda *_: missed.append(True))  # else it would end pytest
  try:
    with pytest.raises(SystemExit) as end:
      loop.train(run)
  finally:
    ours = signal.signal(signal.SIGTERM, before)
  assert end.value.code == 0 and not missed
  ours()
  assert missed  # the signal's handler is again the one from before
  said = capsys.readouterr().out
  assert "the same command goes on from there" in said
  step = int(said.split("stopped at step ")[1].split()[0])
  assert 3 <= step < 8 and last_state(open_run(str(run.workdir)))[0] == step


def test_a_loss_that_is_not_finite_stops_with_the_state_from_before(
  finished, tmp_path, monkeypatch
):
  run = new_run(finished, tmp_path / "nan", steps=6)
  system = type(run.system)
  real = system.loss

  def poisoned(self, variables, batch, rng, *, step, **rest):
    terms, aux = real(self, variables, batch, rng, step=step, **rest)
    bad = jax.numpy.where(step == 3, jax.numpy.nan, 1.0)
    return {name: term._replace(sum=term.sum * bad) for name, term in terms.items()}, aux

  monkeypatch.setattr(system, "loss", poisoned)
  with pytest.raises(FloatingPointError, match="step 3.*Its examples"):
    loop.train(run)
  step, state = last_state(run)
  assert step == 3 and state.step == 3 and state.finite
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.variables))


def test_evaluation_of_a_finished_run_gives_its_results_again(finished):
  evaluation, model = Evaluation.of(open_run(str(finished.workdir))), vlx.load(finished.workdir)
  results = {
    f"retrieval/{k}": v
    for k, v in contract.measures(
      evaluation.evaluators["retrieval"], model, evaluation.data
    ).items()
  }
  assert results == json.loads((finished.workdir / "results.json").read_text())["measures"]


@pytest.mark.slow
def test_one_device_and_eight_train_alike(finished, tmp_path):
  """Losses of the smoke run on one device and on data 4 x fsdp 2, parameters split."""
  rules = ((r"(fc1|query|key|value)/kernel", (None, "fsdp")), (".*", ()))
  split = Run(config(**{"mesh.data": 4, "mesh.fsdp": 2, "partition": rules}), tmp_path / "split")
  loop.train(split)
  one, other = ([line["train/loss"] for line in read_metrics(r.workdir)] for r in (finished, split))
  np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.slow
def test_twenty_steps_are_the_same_on_any_mesh(tmp_path):
  """Parameters split over `fsdp` and `tensor` by the published sizes' rules."""
  losses = {}
  for name, sizes in {
    "data": dict(data=8),
    "fsdp": dict(data=1, fsdp=8),
    "both": dict(data=4, fsdp=2),
    "tensor": dict(data=4, tensor=2),
    "all": dict(data=2, fsdp=2, tensor=2),
  }.items():
    changes = {f"mesh.{axis}": size for axis, size in sizes.items()}
    run = Run(
      config(steps=20, partition=defaults.TRANSFORMER_PARTITION, **changes), tmp_path / name
    )
    loop.train(run)
    losses[name] = [line["train/loss"] for line in read_metrics(run.workdir)]
    assert len(losses[name]) == 20
    np.testing.assert_allclose(losses[name], losses["data"], rtol=1e-6, err_msg=name)


def test_a_folder_of_another_config_is_left_alone(finished):
  before = sorted((p.name, p.stat().st_mtime_ns) for p in finished.workdir.rglob("*"))
  with pytest.raises(UserError, match="another config \\(optim.lr: 0.001 → 0.5\\)"):
    loop.train(Run(config(**{"optim.lr": 0.5}), finished.workdir))
  assert before == sorted((p.name, p.stat().st_mtime_ns) for p in finished.workdir.rglob("*"))


def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(finished, tmp_path, caplog):
  changes = {"checkpoint.every": 4, "checkpoint.keep": 2}
  run = new_run(finished, tmp_path / "damaged", **changes)
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
  with (
    jax.set_mesh(other.mesh),
    checkpoint.open_manager(finished.workdir / "checkpoints", read_only=True) as m,
  ):
    with pytest.raises(UserError) as error:
      checkpoint.restore_latest(m, other.state_shapes)
  for name in ("logit_bias: nothing saved", "image_projection/kernel", "text_projection/kernel"):
    assert f"variables/params/{name}" in str(error.value)


def test_what_leaves_the_mathematics_alone_may_change_where_a_run_goes_on(tmp_path, finished):
  """Another mesh, other logging and evaluators; more steps where the schedule does not end with
  them.
  """
  first = {"optim.decay_steps": 8, "steps": 4}
  loop.train(new_run(finished, tmp_path / "run", **first))
  free = {"mesh.data": 4, "mesh.fsdp": 2, "log_every": 2, "checkpoint.every": 2, "data.threads": 2}
  loop.train(Run(config(**{**first, "steps": 8}, **free), tmp_path / "run"))
  kept = configs.read(tmp_path / "run")
  assert kept.requested.steps == kept.resolved.steps == 8 and kept.resolved.mesh.fsdp == 2
  losses = {line["step"]: line["train/loss"] for line in read_metrics(tmp_path / "run")}
  for line in read_metrics(finished.workdir):
    if line["step"] in losses:
      np.testing.assert_allclose(losses[line["step"]], line["train/loss"], rtol=1e-5)
  with pytest.raises(
    UserError, match="steps: 8 → 9; steps may change where optim.decay_steps was given"
  ):
    loop.train(Run(config(**{"steps": 9}), finished.workdir))


def test_a_second_process_on_a_folder_is_told(tmp_path):
  import filelock

  tmp_path.joinpath("run").mkdir()
  with filelock.FileLock(tmp_path / "run" / ".lock"):
    with pytest.raises(UserError, match="another process is training in"):
      loop.train(Run(config(), tmp_path / "run"))


def test_data_that_is_not_what_the_system_takes_is_told(tmp_path):
  other = config()
  other.data.preprocess = other.data.preprocess.replace("random_affine(32", "random_affine(24")
  with pytest.raises(
    UserError,
    match=r"data.preprocess does not make the examples that CLIP takes: image float32\[32, 32, 3\] \(here float32\[24, 24, 3\]\)",
  ):
    loop.train(Run(other, tmp_path / "run"))


def test_a_batch_in_parts_that_are_no_whole_is_refused(tmp_path):
  with pytest.raises(
    UserError, match="a pair's negatives are the other pairs of the batch.*accumulate_inexact"
  ):
    loop.train(Run(config(**{"optim.accumulate": 2}), tmp_path / "run"))


def test_the_best_checkpoint_is_kept_beside_the_latest(finished, tmp_path):
  """By a measure of which lower is better: the smallest recall here."""
  measure = "retrieval/combo/text_to_image_r10"
  changes = {"evaluators.retrieval.every": 2, "checkpoint.every": 2, "checkpoint.best": measure}
  run = new_run(finished, tmp_path / "run", **changes)
  evaluation = Evaluation.of(run)
  order = []

  class Told:
    def __getattr__(self, name):
      return getattr(evaluation, name)

    def due(self, step, last):
      return evaluation.due(step, last)

    def __call__(self, step, variables, log):
      saved = {int(p.name) for p in (run.workdir / "checkpoints").iterdir() if p.name.isdigit()}
      order.append((step, saved))
      return {measure: {2: 3.0, 4: 1.0, 6: 2.0, 8: 2.5}[step]}

    def is_higher_better(self, name):
      return False

  loop.train(run, on_evaluate=Told())
  assert checkpoint.best_of(run.workdir / "checkpoints") == {
    "step": 4,
    "measure": measure,
    "value": 1.0,
  }
  left = sorted(int(p.name) for p in (run.workdir / "checkpoints").iterdir() if p.name.isdigit())
  assert left == [4, 8]
