"""What training puts before all names is nothing to a reader; what a family has there is its own."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from vlx import pretrained
from vlx.core.errors import UserError
from vlx.pretrained import bert, llama, prefixes, tables, vgg
from vlx.pretrained.formats import TensorFile
from vlx.pretrained.load import variable_shapes

BERT = dict(
  model_type="bert",
  vocab_size=11,
  hidden_size=8,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=16,
  max_position_embeddings=12,
  hidden_act="gelu",
)
LLAMA = dict(
  model_type="llama",
  vocab_size=11,
  hidden_size=8,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=16,
  rms_norm_eps=1e-5,
  tie_word_embeddings=False,
)
CONFIGS = {"bert": BERT, "llama": LLAMA, "tied": dict(LLAMA, tie_word_embeddings=True)}
WRAPPED = ("_orig_mod.", "module.", "model.", "module._orig_mod.", "_orig_mod.module.model.model.")


def tensors_of(layout):
  """Tensors of a public file, each with numbers of its own."""
  shapes = variable_shapes(layout.system)
  variables = jax.tree.map(
    lambda x: np.random.default_rng(x.size).normal(size=x.shape).astype(x.dtype), shapes
  )
  return dict(tables.export(layout.rows, variables)), variables


def write(folder, tensors, form):
  tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
  if form == "whole":
    save_file(tensors, folder / "model.safetensors")
    return
  names = sorted(tensors)
  parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
  for file, held in parts.items():
    save_file({name: tensors[name] for name in held}, folder / file)
  places = {name: file for file, held in parts.items() for name in held}
  index = json.dumps({"weight_map": places})
  (folder / "model.safetensors.index.json").write_text(index)


@pytest.mark.parametrize("form", ("whole", "sharded"))
@pytest.mark.parametrize("prefix", ("", *WRAPPED))
@pytest.mark.parametrize("name", CONFIGS)
def test_prefixes_common_to_all_names(name, prefix, form, tmp_path):
  config = CONFIGS[name]
  layout = (bert if name == "bert" else llama).from_hugging_face(config)
  tensors, variables = tensors_of(layout)
  write(tmp_path, {prefix + public: x for public, x in tensors.items()}, form)
  (tmp_path / "config.json").write_text(json.dumps(config))
  found = pretrained.load(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, found.variables, variables)


@pytest.mark.parametrize("prefix", WRAPPED)
@pytest.mark.parametrize("suffix", (".safetensors", ".npz"))
def test_prefixes_of_a_file_that_is_known_by_its_names(prefix, suffix, tmp_path):
  tower = vgg.VGGTower((1, 1), width=4)
  layout = tables.CheckpointMap(vgg.VGG(tower, 3, 5), vgg.rows((1, 1)))
  tensors, variables = tensors_of(layout)
  wrapped = {prefix + public: np.ascontiguousarray(x) for public, x in tensors.items()}
  write = save_file if suffix == ".safetensors" else lambda x, path: np.savez(path, **x)
  write(wrapped, tmp_path / f"x{suffix}")
  found = pretrained.load(tmp_path / f"x{suffix}")
  jax.tree.map(np.testing.assert_array_equal, found.variables, variables)


def test_a_prefix_of_some_names_stays_and_is_told(tmp_path):
  tensors, _ = tensors_of(bert.from_hugging_face(BERT))
  first, *others = tensors
  write(tmp_path, {f"module.{first}": tensors[first], **{n: tensors[n] for n in others}}, "whole")
  (tmp_path / "config.json").write_text(json.dumps(BERT))
  with pytest.raises(UserError, match=f"missing: {first}"):
    pretrained.load(tmp_path)


def test_a_prefix_that_never_ends():
  """A name of many prefixes costs its length for each of them."""
  deep = TensorFile({"module." * 1000 + name: (1,) for name in "ab"}, None)
  assert len(list(prefixes.unwrapped(deep))) < 10
