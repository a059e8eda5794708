"""A folder of vlx whose config.json was changed: one line, before anything is built of it."""

import json

import jax
import numpy as np
import pytest

import vlx
from vlx import convert
from vlx.core.errors import UserError
from vlx.pretrained import tables, vit
from vlx.pretrained.formats.safetensors import write_safetensors
from vlx.pretrained.load import variable_shapes

CONFIG = dict(
  model_type="vit",
  hidden_size=8,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=16,
  hidden_act="gelu",
  layer_norm_eps=1e-5,
  image_size=8,
  patch_size=4,
  num_labels=3,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """(a converted folder, its config.json)."""
  source, output = tmp_path_factory.mktemp("public"), tmp_path_factory.mktemp("run") / "vlx"
  layout = vit.from_hugging_face(CONFIG)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), variable_shapes(layout.system))
  write_safetensors(
    source / "model.safetensors",
    tables.public_shapes(layout.rows, zeros),
    tables.export(layout.rows, zeros),
  )
  (source / "config.json").write_text(json.dumps(CONFIG))
  convert.to_vlx(source, output)
  return output, json.loads((output / "config.json").read_text())


def changed(config, path, value):
  first, *rest = path
  return {**config, first: changed(config[first], rest, value) if rest else value}


ABSURD = (None, [], [1], {}, "x", float("nan"), -1, 0, 1.5, True, 5000, 10**6, 10**12, 10**400)
FIELDS = ("depth", "width", "num_heads", "mlp_dim", "image_size", "patch_size")


@pytest.mark.parametrize("field", FIELDS)
def test_absurd_fields_of_a_run_are_told(run, field):
  folder, config = run
  for value in ABSURD:
    new = changed(config, ("resolved", "model", "tower", field), value)
    (folder / "config.json").write_text(json.dumps(new))
    with pytest.raises(UserError):
      vlx.load(folder)


@pytest.mark.parametrize("path", [("resolved",), ("resolved", "model"), ("resolved", "system")])
@pytest.mark.parametrize("value", [None, [], "x", 1, {}])
def test_absurd_sections_of_a_run_are_told(run, path, value):
  folder, config = run
  (folder / "config.json").write_text(json.dumps(changed(config, path, value)))
  with pytest.raises(UserError):
    vlx.load(folder)


@pytest.mark.parametrize(
  "text", ['{"schema": 2', "[]", "", "\0", '{"schema": ' + "[" * 10**5, "9" * 10**5]
)
def test_a_damaged_config_of_a_run_is_told(run, text):
  folder, _ = run
  (folder / "config.json").write_text(text)
  with pytest.raises(UserError):
    vlx.load(folder)
