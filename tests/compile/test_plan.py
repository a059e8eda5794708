"""A plan is the run that `vlx.train` makes, without its data and devices."""

import pathlib
import shlex

import jax
import pytest

from vlx.compile import topologies
from vlx.compile.plan import Plan
from vlx.core.config import load_config
from vlx.core.errors import UserError
from vlx.train.run import Run

ROOT = pathlib.Path(__file__).parents[2]


def plan(config, count=8):
  return Plan(config, None, tuple(jax.devices()[:count]))


@pytest.mark.parametrize("path", ["configs/clip.py:smoke", "configs/vit.py:smoke"])
def test_shapes_and_shardings_are_those_of_real_data(path, tmp_path):
  config, real = load_config(path), Run(load_config(path), tmp_path)
  assert plan(config).batch_shapes == real.batch_shapes
  assert plan(config).state_shapes == real.state_shapes


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"mesh.fsdp": 3}, "does not fit 8 devices"),
    ({"data.batch_size": 12}, "batch_size 12 must be a multiple of the mesh"),
    (
      {"mesh.data": 1, "mesh.tensor": 8, "partition": (("head/bias", ("tensor",)), (".*", ()))},
      r"does not divide .*head/bias \[10\]",
    ),
  ],
)
def test_what_does_not_fit_together_is_the_users_error(changes, message):
  config = load_config("configs/vit.py:smoke")
  with config.unlocked():
    config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=message):
    plan(config).state_shapes, plan(config).batch_shapes


@pytest.mark.parametrize(
  "name,devices",
  [
    ("v5e:4x4", 16),
    ("v6e:16x16", 256),
    ("v5e:1x1", 1),
    ("v5p:2x2x1", 4),
    ("v4:4x4x8", 128),
    ("h100:8", 8),
    ("cpu:3", 3),
  ],
)
def test_topologies(name, devices):
  topology = topologies.parse(name)
  assert (topology.name, topology.devices) == (name, devices)


@pytest.mark.parametrize(
  "name",
  [
    "v5e",
    "v5e:",
    "v5e:3x3",
    "v5e:4x4x1",
    "v5p:2x2",
    "v5p:1x2x2",
    "v4:64x64x64",
    "h100:2x2",
    "h100:12",
    "cpu:0",
    "v7:2x2",
    "v5e:4x4 ",
  ],
)
def test_an_unknown_topology_names_the_valid_ones(name):
  with pytest.raises(UserError, match="v5e:AxB and v6e:AxB with AxB of 1x1, 2x2.*h100:N.*; cpu:N"):
    topologies.parse(name)


@pytest.mark.parametrize("name,package", [("v5e:2x2", "libtpu"), ("h100:1", "jax_cuda12_plugin")])
def test_a_missing_compiler_says_what_to_type(name, package, monkeypatch, tmp_path):
  monkeypatch.setattr("sys.prefix", str(tmp_path))
  monkeypatch.setattr("sys.path", [])
  with pytest.raises(UserError) as error:
    topologies.find_compiler(topologies.parse(name))
  words = shlex.split(str(error.value).partition("type: ")[2])
  assert words[1:7] == [
    "-m",
    "pip",
    "install",
    "--no-deps",
    "--target",
    str(tmp_path / "compilers"),
  ]
  assert words[7:] and set(words[7:]) <= set(
    (ROOT / "requirements-compile.txt").read_text().splitlines()
  )
  (tmp_path / "compilers" / package).mkdir(parents=True)
  assert topologies.find_compiler(topologies.parse(name)) == tmp_path / "compilers"
