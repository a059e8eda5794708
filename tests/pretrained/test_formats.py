"""What other programs wrote, read by vlx's own readers (recorded by
tests/parity/record/torch_files.py).
"""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors import safe_open
from safetensors.numpy import save_file

from vlx import pretrained
from vlx.core.errors import UserError
from vlx.pretrained import llama
from vlx.pretrained.formats import TensorFile
from vlx.pretrained.formats.npz import open_npz
from vlx.pretrained.formats.safetensors import open_safetensors
from vlx.pretrained.formats.shards import open_index, open_joined
from vlx.pretrained.formats.torch_files import open_torch

PARITY = pathlib.Path(__file__).parents[1] / "parity"


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_what_torch_saves(kind):
  file, values = open_torch(PARITY / f"torch_{kind}.pth"), np.load(PARITY / "torch_values.npz")
  assert file.shapes == {name: x.shape for name, x in values.items()}
  for name, expected in values.items():
    found = file.fetch(name)
    assert found.dtype.name == {"half": "float16", "brain": "bfloat16"}.get(
      name, expected.dtype.name
    )
    np.testing.assert_array_equal(found.astype(expected.dtype), expected, err_msg=name)


def test_a_module_of_torchscript():
  file, values = open_torch(PARITY / "torch_script.pt"), np.load(PARITY / "torch_script.npz")
  assert file.shapes == {name: x.shape for name, x in values.items()}
  for name, expected in values.items():
    np.testing.assert_array_equal(file.fetch(name), expected)


@pytest.mark.parametrize("kind", ["zip.pth", "legacy.pth", "script.pt"])
def test_a_file_of_torchs_cut_short_is_told(kind, tmp_path):
  whole = (PARITY / f"torch_{kind}").read_bytes()
  for size in range(0, len(whole), 97):
    (tmp_path / "x.pth").write_bytes(whole[:size])
    with pytest.raises(UserError):
      open_torch(tmp_path / "x.pth")


def test_arrays_of_numpy_and_no_objects(tmp_path):
  values = {"Transformer/a": np.arange(6.0).reshape(2, 3), "b": np.float32(2)}
  np.savez(tmp_path / "x.npz", **values)
  file = open_npz(tmp_path / "x.npz")
  assert file.shapes == {"Transformer/a": (2, 3), "b": ()}
  for name, expected in values.items():
    np.testing.assert_array_equal(file.fetch(name), expected)
  np.savez(tmp_path / "x.npz", b=np.array([{}], object))
  with pytest.raises(UserError, match="b holds Python objects"):
    open_npz(tmp_path / "x.npz")


def test_files_of_an_index(tmp_path):
  tensors = {"a": np.arange(4, dtype=np.float32), "b": np.ones((2, 2), np.float32)}
  for name, x in tensors.items():
    save_file({name: x}, tmp_path / f"{name}.safetensors")

  def write(**places):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return open_index(tmp_path / "model.safetensors.index.json", open_safetensors)

  file = write(a="a.safetensors", b="b.safetensors")
  for name, expected in tensors.items():
    np.testing.assert_array_equal(file.fetch(name), expected)
  with pytest.raises(UserError, match="c is in a.safetensors, which lacks it"):
    write(c="a.safetensors")
  with pytest.raises(UserError, match="not a file beside it"):
    write(a="../a.safetensors")


@pytest.fixture
def meta_folder(tmp_path):
  """Meta's folder of the recorded LLaMA in two shards, and its weights."""
  with safe_open(PARITY / "llama.safetensors", "numpy") as file:
    config = json.loads(file.metadata()["meta"])
    weights = {
      name.removeprefix("meta/weights/"): file.get_tensor(name)
      for name in file.keys()
      if name.startswith("meta/weights/")
    }
  for i in range(2):
    shutil.copy(PARITY / f"llama_meta.{i:02}.pth", tmp_path / f"consolidated.{i:02}.pth")
  (tmp_path / "params.json").write_text(
    json.dumps(
      dict(
        dim=config["hidden_size"],
        n_layers=config["num_hidden_layers"],
        n_heads=config["num_attention_heads"],
        n_kv_heads=config["num_key_value_heads"],
        vocab_size=config["vocab_size"],
        norm_eps=config["rms_norm_eps"],
        multiple_of=1,
        ffn_dim_multiplier=0.57,  # 48 of 85
      )
    )
  )
  return tmp_path, weights


def test_metas_shards_are_joined(meta_folder):
  folder, weights = meta_folder
  params = pretrained.load(folder).variables["params"]
  np.testing.assert_array_equal(
    params["token_embedding"]["embedding"], weights["tok_embeddings.weight"]
  )
  np.testing.assert_array_equal(params["head"]["kernel"], weights["output.weight"].T)
  for layer, names in enumerate(
    zip(*(params["blocks"]["mlp"][n]["kernel"] for n in ("gate", "up", "down")))
  ):
    for kernel, public in zip(names, ("w1", "w3", "w2")):
      np.testing.assert_array_equal(
        kernel, weights[f"layers.{layer}.feed_forward.{public}.weight"].T
      )


@pytest.mark.parametrize("name, shape", [("tok_embeddings.weight", (4,)), ("output.weight", ())])
def test_shards_without_the_axis_that_they_join_along(name, shape):
  with pytest.raises(UserError, match="do not join along their axis"):
    open_joined([TensorFile({name: shape}, None)] * 2, llama.META_SHARD_AXES)


def test_variables_go_to_the_mesh_by_their_rules(meta_folder):
  folder, _ = meta_folder
  mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  rules = ((r"mlp/(gate|up)/kernel", (None, "fsdp", None)), (".*", ()))
  one, many = (
    pretrained.load(folder).variables,
    pretrained.load(folder, mesh=mesh, partition=rules).variables,
  )
  jax.tree.map(np.testing.assert_array_equal, one, many)
  assert many["params"]["blocks"]["mlp"]["gate"]["kernel"].sharding == NamedSharding(
    mesh, P(None, "fsdp", None)
  )
  assert many["params"]["final_norm"]["scale"].sharding.is_fully_replicated
