"""A folder that 4e68086 left goes on, and is read, as if nothing had been renamed since.

`schema_1.tar.xz`: `vlx.train --config=configs/vit.py:smoke` there, of width 8, depth 1, mlp_dim 8,
log_every 1, batches of 8, 6 steps, a checkpoint every 4; of its checkpoints that of step 4 alone.
"""

import pathlib
import tarfile

import jax
import numpy as np
import pytest

import vlx
from vlx.core import config as configs
from vlx.core.files import read_steps
from vlx.train import loop
from vlx.train.run import Run


@pytest.fixture
def folder(tmp_path):
  with tarfile.open(pathlib.Path(__file__).with_name("schema_1.tar.xz")) as archive:
    archive.extractall(tmp_path, filter="data")
  return tmp_path


def test_it_goes_on_to_the_same_losses(folder):
  before = read_steps(folder / "metrics.jsonl")
  assert configs.read(folder).schema == 1 and [line["step"] for line in before] == [
    1,
    2,
    3,
    4,
    5,
    6,
  ]
  run = Run(configs.read(folder).requested, folder)
  loop.train(run)
  after = read_steps(folder / "metrics.jsonl")
  assert [line["step"] for line in after] == [1, 2, 3, 4, 5, 6] and after[:4] == before[:4]
  for was, is_now in zip(before[4:], after[4:]):
    np.testing.assert_allclose(is_now["train/loss"], was["train/loss"], rtol=1e-5)
    np.testing.assert_allclose(is_now["train/grad_norm"], was["train/grad_norm"], rtol=1e-4)
  assert configs.read(folder).schema == 2


def test_it_is_loaded(folder):
  model = vlx.load(folder)
  assert type(model.system).__name__ == "ViT" and model.system.tower.width == 8
  leaves = jax.tree.leaves(model.variables)
  assert sum(x.size for x in leaves if x.ndim) > 1500 and all(np.isfinite(x).all() for x in leaves)
