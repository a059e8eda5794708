"""LLaMA's public files: GGUF and what is quantised in it, configurations both ways, bad ones."""

import json
import pathlib

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from tests import contract
from vlx.core.errors import UserError
from vlx.core.system import names
from vlx.models.language.llama import SIZES, published_size
from vlx.pretrained import llama, tables
from vlx.pretrained.formats import TensorFile
from vlx.pretrained.formats.gguf import open_gguf

PARITY = pathlib.Path(__file__).parents[1] / "parity"
# What was released beside each model; where it says -1 words, its tokenizer knows.
PARAMS = {
  "1-7B": dict(dim=4096, multiple_of=256, n_heads=32, n_layers=32, norm_eps=1e-06, vocab_size=-1),
  "1-65B": dict(dim=8192, multiple_of=256, n_heads=64, n_layers=80, norm_eps=1e-05, vocab_size=-1),
  "2-13B": dict(dim=5120, multiple_of=256, n_heads=40, n_layers=40, norm_eps=1e-05, vocab_size=-1),
  "2-70B": dict(
    dim=8192,
    multiple_of=4096,
    ffn_dim_multiplier=1.3,
    n_heads=64,
    n_kv_heads=8,
    n_layers=80,
    norm_eps=1e-05,
    vocab_size=-1,
  ),
}


def recorded(case):
  with safe_open(PARITY / "llama.safetensors", "numpy") as file:
    get = lambda part: {
      k.split("/")[2]: file.get_tensor(k) for k in file.keys() if k.startswith(f"{case}/{part}/")
    }
    return json.loads(file.metadata()[case]), get("weights"), get("inputs"), get("outputs")


def loaded(layout, file):
  wanted = contract.shapes(layout.system)
  found = tables.read(layout.rows, wanted, file.shapes, file.fetch, copies=layout.copies)
  return jax.tree.map(found.__getitem__, names(wanted))


def write_gguf(path, config, weights):
  """As llama.cpp's converter does: its names, and the rows of queries and keys with pairs side
  by side.
  """
  heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_block_count(config["num_hidden_layers"])
  writer.add_context_length(config["max_position_embeddings"])
  writer.add_embedding_length(config["hidden_size"])
  writer.add_feed_forward_length(config["intermediate_size"])
  writer.add_head_count(heads)
  writer.add_head_count_kv(groups)
  writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
  writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
  names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
  for name, x in weights.items():
    for part, count in (("q_proj", heads), ("k_proj", groups)):
      if part in name:
        x = x.reshape(count, 2, len(x) // count // 2, -1).swapaxes(1, 2).reshape(x.shape)
    writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(x))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


@pytest.mark.parametrize("case", ["groups", "tied"])
def test_a_gguf_file_is_the_model_that_it_was_made_from(tmp_path, case):
  config, weights, inputs, outputs = recorded(case)
  write_gguf(tmp_path / "model.gguf", config, weights)
  file = open_gguf(tmp_path / "model.gguf")
  layout = llama.from_gguf(file)
  assert layout.system.decoder.tie_embeddings == (case == "tied")
  logits, real = (
    layout.system.token_logits(loaded(layout, file), jnp.asarray(inputs["text"])),
    inputs["text_mask"],
  )
  expected = outputs["logits"]
  np.testing.assert_allclose(
    np.asarray(logits)[real], expected[real], rtol=0, atol=1e-5 * np.abs(expected).max()
  )


@pytest.mark.parametrize("case", ["heads", "tied"])
def test_configurations_of_hugging_face_both_ways(case):
  config, weights, inputs, outputs = recorded(case)
  file = TensorFile({n: x.shape for n, x in weights.items()}, weights.__getitem__)
  layout = llama.from_hugging_face(config)
  variables = loaded(layout, file)
  real = inputs["text_mask"]
  np.testing.assert_allclose(
    np.asarray(layout.system.token_logits(variables, jnp.asarray(inputs["text"])))[real],
    outputs["logits"][real],
    rtol=0,
    atol=1e-5 * np.abs(outputs["logits"]).max(),
  )
  written, back = llama.to_hugging_face(layout.system)
  assert back == layout == llama.from_hugging_face(json.loads(json.dumps(written)))
  assert dict(tables.export(back.rows, variables)).keys() == weights.keys()


@pytest.mark.parametrize("name", PARAMS)
def test_released_params_give_the_published_sizes(name):
  decoder = llama.from_meta(PARAMS[name]).system.decoder
  assert {field: getattr(decoder, field) for field in SIZES[name]} == SIZES[name]
  assert decoder.vocab_size == published_size(name)["vocab_size"]


@pytest.mark.parametrize(
  "change",
  [
    dict(hidden_size=None),
    dict(hidden_size=-1),
    dict(num_hidden_layers=1.5),
    dict(num_attention_heads=5),
    dict(num_key_value_heads=3),
    dict(rms_norm_eps="small"),
    dict(hidden_act="gelu"),
    dict(attention_bias=True),
    dict(rope_scaling=dict(type="linear", factor=2.0)),
    dict(head_dim=4),
    dict(vocab_size=0),
  ],
  ids=str,
)
def test_fields_that_are_missing_or_absurd_are_told(change):
  with pytest.raises(UserError, match=next(iter(change))) as told:
    llama.from_hugging_face(recorded("heads")[0] | change)
  assert "\n" not in str(told.value)


def small_gguf(tmp_path):
  """A tensor of each type, 3 × 64 numbers, and what it says."""
  x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
  writer = gguf.GGUFWriter(tmp_path / "small.gguf", "llama")
  writer.add_array("tokenizer.ggml.tokens", ["a", "b", "ü"])
  writer.add_array("numbers", [1, 2, 3])
  writer.add_tensor("F32", x)
  writer.add_tensor("F16", x.astype(np.float16))
  for name in ("Q8_0", "Q4_1"):
    kind = gguf.GGMLQuantizationType[name]
    writer.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return tmp_path / "small.gguf", x


def test_quantised_tensors_come_within_half_a_step(tmp_path):
  path, x = small_gguf(tmp_path)
  file = open_gguf(path)
  assert file.shapes == dict.fromkeys(("F32", "F16", "Q8_0", "Q4_1"), (3, 64))
  assert file.metadata["tokenizer.ggml.tokens"] == ["a", "b", "ü"]
  np.testing.assert_array_equal(file.fetch("F32"), x)
  np.testing.assert_array_equal(file.fetch("F16"), x.astype(np.float16))
  blocks = x.reshape(3, 2, 32)
  for name, step in (
    ("Q8_0", np.abs(blocks).max(-1) / 127),
    ("Q4_1", np.ptp(blocks, axis=-1) / 15),
  ):
    found = file.fetch(name)
    assert found.dtype == np.float32
    error = np.abs(found.reshape(blocks.shape) - blocks).max(-1)
    assert np.all(error <= 0.51 * step + 2e-3)  # scales are f16
    assert np.all(error > 0.05 * step)


def test_a_file_cut_off_anywhere_is_told_in_one_line(tmp_path):
  path, _ = small_gguf(tmp_path)
  data = path.read_bytes()
  for size in [*range(0, 700, 7), len(data) - 1000]:
    path.write_bytes(data[:size])
    with pytest.raises(UserError, match="small.gguf") as told:
      open_gguf(path)
    assert "\n" not in str(told.value)


def test_a_damaged_file_is_told_or_read(tmp_path):
  path, _ = small_gguf(tmp_path)
  data, rng = path.read_bytes(), np.random.default_rng(0)
  told = 0
  for _ in range(300):
    damaged = bytearray(data)
    for at in rng.integers(0, 700, rng.integers(1, 4)):
      damaged[at] = rng.choice([0, 1, 127, 255, rng.integers(256)])
    path.write_bytes(damaged)
    try:
      file = open_gguf(path)
      for name, shape in file.shapes.items():
        assert file.fetch(name).shape == shape
    except UserError:
      told += 1
  assert told > 100


@pytest.mark.parametrize(
  "change, told",
  [
    ({"general.architecture": "gemma"}, "gemma"),
    ({"llama.block_count": None}, "block_count"),
    ({"llama.attention.head_count": 7}, "head_count"),
    ({"llama.rope.scaling.type": "yarn"}, "scaling"),
    ({"llama.expert_count": 8}, "expert_count"),
  ],
)
def test_metadata_that_are_missing_or_absurd_are_told(tmp_path, change, told):
  config, weights, *_ = recorded("groups")
  write_gguf(tmp_path / "model.gguf", config, weights)
  file = open_gguf(tmp_path / "model.gguf")
  with pytest.raises(UserError, match=told):
    llama.from_gguf(file._replace(metadata={**file.metadata, **change}))
