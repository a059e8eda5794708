"""Folders and files as people have them on disk: read right, or refused in a line with nothing
run.
"""

import json
import os
import pathlib
import pickle
import struct
import sys
import zipfile

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from vlx import convert, pretrained
from vlx.core.errors import UserError
from vlx.pretrained import bert, dvae, tables
from vlx.pretrained.formats.safetensors import open_safetensors, write_safetensors
from vlx.pretrained.formats.torch_files import open_torch
from vlx.pretrained.load import variable_shapes

PARITY = pathlib.Path(__file__).parents[1] / "parity"
CONFIG = dict(
  model_type="bert",
  vocab_size=30,
  hidden_size=8,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=16,
  max_position_embeddings=12,
  type_vocab_size=2,
  hidden_act="gelu",
  layer_norm_eps=1e-12,
)


@pytest.fixture
def folder(tmp_path):
  """A BERT in Hugging Face's form, and the variables that it was written from."""
  layout = bert.from_hugging_face(CONFIG)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), variable_shapes(layout.system)
  )
  write_safetensors(
    tmp_path / "model.safetensors",
    tables.public_shapes(layout.rows, variables),
    tables.export(layout.rows, variables),
  )
  (tmp_path / "config.json").write_text(json.dumps(CONFIG))
  return tmp_path, variables


def test_a_folder_gives_the_variables_it_was_written_from(folder):
  path, variables = folder
  found = pretrained.load(path)
  jax.tree.map(np.testing.assert_array_equal, found.variables, variables)
  assert found.tokenizer is None and found.image_transform == ""


def test_a_folder_of_open_clips(tmp_path):
  """Heads, GELU and pixel statistics are what its config says, and what vlx has no place for is
  named.
  """
  recorded = load_file(PARITY / "clip_openai.safetensors")
  prefix = "open_clip_config/weights/"
  weights = {
    name.removeprefix(prefix): x for name, x in recorded.items() if name.startswith(prefix)
  }
  write_safetensors(
    tmp_path / "open_clip_model.safetensors",
    {n: x.shape for n, x in weights.items()},
    weights.items(),
  )
  model = dict(
    embed_dim=16,
    quick_gelu=True,
    vision_cfg=dict(width=64, head_width=16, layers=2, ls_init_value=None),
    text_cfg=dict(width=64, heads=2),
  )

  def load(**changed):
    config = {
      "model_cfg": {**model, **changed},
      "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    return pretrained.load(tmp_path)

  system, _, _, preprocess = load()
  assert (system.image.num_heads, system.text.num_heads, system.image.activation) == (
    4,
    2,
    "quick_gelu",
  )
  assert preprocess.endswith("normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))")
  assert load(quick_gelu=False).system.text.activation == "gelu"
  for line, changed in {
    "vision_cfg.timm_model_name": dict(
      vision_cfg=dict(timm_model_name="vit_base_patch16_siglip_224")
    ),
    "has no model_cfg with a text_cfg": dict(text_cfg=None),
    "embed_dim is 32, of the weights beside it 16": dict(embed_dim=32),
    "text_cfg.width 64 does not divide by text_cfg.heads 3": dict(text_cfg=dict(heads=3)),
  }.items():
    with pytest.raises(UserError, match=line):
      load(**changed)


def test_whole_modules_of_openais_dvae_are_read_as_data():
  """One half as torch saves it today, one as before 1.6 (recorded by
  tests/parity/record/dvae.py).
  """
  folder = PARITY / "dvae"
  found = pretrained.load(folder)
  weights = load_file(folder / "weights.safetensors")
  returned = dict(tables.export(dvae.rows(blocks_per_group=1), found.variables))
  assert returned.keys() == weights.keys() and found.system.grid == (32, 32)
  for name, tensor in weights.items():
    np.testing.assert_array_equal(returned[name], tensor, err_msg=name)


def test_half_a_dvae_is_told(tmp_path):
  folder = PARITY / "dvae"
  for half in ("encoder", "decoder"):
    (tmp_path / f"{half}.pkl").write_bytes((folder / "decoder.pkl").read_bytes())
  with pytest.raises(UserError, match="OpenAI's dVAE|does not fit"):
    pretrained.load(tmp_path)


@pytest.mark.parametrize(
  "change,message",
  [
    ({"hidden_size": None}, "hidden_size"),
    ({"num_attention_heads": 3}, "num_attention_heads"),
    ({"num_hidden_layers": -1}, "num_hidden_layers"),
    ({"model_type": "gpt5"}, "gpt5"),
    ({"num_hidden_layers": 3}, "missing: bert.encoder.layer.2"),
    ({"num_hidden_layers": 1}, "surplus: bert.encoder.layer.1"),
    ({"vocab_size": 31}, "misshapen: bert.embeddings.word_embeddings.weight"),
  ],
)
def test_a_config_that_does_not_fit_is_told(folder, change, message):
  path, _ = folder
  (path / "config.json").write_text(json.dumps({**CONFIG, **change}))
  with pytest.raises(UserError, match=message):
    pretrained.load(path)


def with_header(path, header, data=b"\0" * 8, length=None):
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


A = dict(dtype="F32", shape=[1], data_offsets=[0, 4])


@pytest.mark.parametrize(
  "header,length,message",
  [
    ({"a": A}, 2**60, "its header has 1152921504606846976 bytes"),
    ({"a": A, "b": A}, None, "inside of another tensor"),
    ({"a": {**A, "dtype": "F31"}}, None, "of the type 'F31'"),
    ({"a": {**A, "shape": [2**40]}}, None, "but lies at"),
    ({"a": A}, None, "cut off or damaged"),
    ([], None, "names no tensors"),
  ],
)
def test_a_header_that_lies_is_told(tmp_path, header, length, message):
  with_header(tmp_path / "x.safetensors", header, length=length)
  with pytest.raises(UserError, match=message):
    open_safetensors(tmp_path / "x.safetensors")


def test_a_file_cut_short_anywhere_is_told(folder):
  path, _ = folder
  whole = (path / "model.safetensors").read_bytes()
  for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
    (path / "model.safetensors").write_bytes(whole[:size])
    with pytest.raises(UserError):
      pretrained.load(path)


class Evil:
  def __init__(self, trace):
    self.trace = str(trace)

  def __reduce__(self):
    return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_calls_the_system_runs_nothing(tmp_path, protocol):
  trace, file = tmp_path / "trace", tmp_path / "model.pth"
  with zipfile.ZipFile(file, "w") as archive:
    archive.writestr("archive/data.pkl", pickle.dumps({"a": Evil(trace)}, protocol=protocol))
  with pytest.raises(UserError, match="posix.system"):
    open_torch(file)
  file.write_bytes(pickle.dumps({"a": Evil(trace)}, protocol=protocol))
  with pytest.raises(UserError):
    open_torch(file)
  assert not trace.exists()


def test_converted_and_back_it_is_the_same_file(folder, tmp_path):
  path, variables = folder
  convert.to_vlx(path, tmp_path / "vlx")
  jax.tree.map(
    np.testing.assert_array_equal, pretrained.load(tmp_path / "vlx").variables, variables
  )
  convert.to_hugging_face(tmp_path / "vlx", tmp_path / "back")
  one, other = (open_safetensors(f / "model.safetensors") for f in (path, tmp_path / "back"))
  assert one.shapes == other.shapes
  for name in one.shapes:
    np.testing.assert_array_equal(one.fetch(name), other.fetch(name), err_msg=name)
  again = json.loads((tmp_path / "back" / "config.json").read_text())
  assert {name: again[name] for name in CONFIG} == CONFIG


def test_a_mistyped_path_does_not_ask_the_hub(tmp_path, monkeypatch):
  (tmp_path / "runs").mkdir()
  monkeypatch.chdir(tmp_path)
  # The package's `load` is the function.
  module = sys.modules["vlx.pretrained.load"]
  monkeypatch.setattr(module, "download", lambda name: pytest.fail("the hub was asked"))
  with pytest.raises(
    UserError, match="no file or folder runs/clpi; to ask the hub for it, name hub:"
  ):
    module.locate("runs/clpi")
