"""Public files without a classifier, a pooler, a second head or a language model's head: which of
these there are is what their names say, and none is made up (recorded by
tests/parity/record/headless.py).
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from tests import contract
from vlx import convert, pretrained
from vlx.core import capabilities
from vlx.core.errors import UserError
from vlx.core.system import batch_shapes, flatten
from vlx.models.language.llama import LanguageModel, LLaMAEncoder
from vlx.models.pretraining.bert import BERTEncoder, MaskedLanguageModel
from vlx.models.vision.vit import ViTEncoder
from vlx.pretrained.formats.safetensors import open_safetensors, write_safetensors

PARITY = pathlib.Path(__file__).parents[1] / "parity"
CASES = {
  "bert_words": MaskedLanguageModel,
  "bert_no_pooler": BERTEncoder,
  "bert_pooler": BERTEncoder,
  "vit_pooler": ViTEncoder,
  "vit_no_pooler": ViTEncoder,
  "llama": LLaMAEncoder,
}


def recorded(case):
  """(config, weights, inputs, outputs)"""
  with safe_open(PARITY / "headless.safetensors", "numpy") as file:
    get = lambda part: {
      k.split("/", 2)[2]: file.get_tensor(k) for k in file.keys() if k.startswith(f"{case}/{part}/")
    }
    return json.loads(file.metadata()[case]), get("weights"), get("inputs"), get("outputs")


def folder(path, config, weights):
  path.mkdir(exist_ok=True)
  write_safetensors(
    path / "model.safetensors", {n: x.shape for n, x in weights.items()}, weights.items()
  )
  (path / "config.json").write_text(json.dumps(config))
  return path


def said(model, inputs):
  """What the model says of the recorded inputs, by transformers' names."""
  system, v = model.system, model.variables
  match system:
    case MaskedLanguageModel():
      words, sentence = system.word_logits(v, inputs["text"], inputs["text_mask"])
      assert sentence is None
      return dict(logits=words)
    case BERTEncoder():
      pooled, _ = system.tower.apply({"params": v["params"]}, inputs["text"], inputs["text_mask"])
      tokens = system.encode_text(v, inputs["text"], inputs["text_mask"])
      pooler = dict(pooler_output=pooled) if system.tower.has_pooler else {}
      return dict(last_hidden_state=tokens, **pooler)
    case LLaMAEncoder():
      return dict(last_hidden_state=system.encode_text(v, inputs["text"], inputs["text_mask"]))
    case ViTEncoder():
      tokens, one = system.encode_image(v, inputs["image"]), system.embed_image(v, inputs["image"])
      pooled = dict(pooler_output=one) if system.representation_size else dict(cls=one)
      return dict(last_hidden_state=tokens, **pooled)


@pytest.mark.parametrize("case", CASES)
def test_it_says_what_transformers_says(case, tmp_path):
  config, weights, inputs, outputs = recorded(case)
  model = pretrained.load(folder(tmp_path, config, weights))
  assert type(model.system) is CASES[case]
  found = jax.jit(lambda v, given: said(model._replace(variables=v), given))(
    model.variables, inputs
  )
  if case == "vit_no_pooler":
    outputs["cls"] = outputs["last_hidden_state"][:, 0]
  assert found.keys() == outputs.keys()
  for name, expected in outputs.items():
    real = inputs["text_mask"] if expected.ndim == 3 and "text" in inputs else ...
    atol = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(found[name])[real], expected[real], rtol=0, atol=atol)


@pytest.mark.parametrize("case", CASES)
def test_through_a_folder_of_vlx_and_back_it_is_the_same_file(case, tmp_path):
  config, weights, _, _ = recorded(case)
  convert.to_vlx(folder(tmp_path / "public", config, weights), tmp_path / "vlx")
  convert.to_hugging_face(tmp_path / "vlx", tmp_path / "back")
  back = open_safetensors(tmp_path / "back" / "model.safetensors")
  # A LlamaModel's names may have "model." before them, as those of a LlamaForCausalLM.
  names = {n.removeprefix("model."): n for n in back.shapes}
  assert names.keys() == weights.keys()
  for name, tensor in weights.items():
    np.testing.assert_array_equal(back.fetch(names[name]), tensor, err_msg=name)
  written = json.loads((tmp_path / "back" / "config.json").read_text())
  assert written["architectures"] == config["architectures"]
  again, first = (pretrained.load(tmp_path / n) for n in ("back", "public"))
  assert again.system == first.system
  jax.tree.map(np.testing.assert_array_equal, again.variables, first.variables)


def test_the_names_count_and_not_the_architecture(tmp_path):
  """Cut out of a larger file, or saved by a class that the config does not name."""
  config, weights, _, _ = recorded("bert_no_pooler")
  cut = {f"bert.{name}": x for name, x in weights.items()}
  for architecture in (["BertForMaskedLM"], ["BertModel"], None):
    told = {**config, "architectures": architecture}
    for tensors in (weights, cut):
      system = pretrained.load(folder(tmp_path, told, tensors)).system
      assert isinstance(system, BERTEncoder) and not system.tower.has_pooler
  config, weights, _, _ = recorded("vit_pooler")
  cut = {f"vit.{name}": x for name, x in weights.items()}
  told = {**config, "architectures": ["ViTForImageClassification"]}
  system = pretrained.load(folder(tmp_path, told, cut)).system
  assert system.representation_size == 16


def test_no_head_is_made_up(tmp_path):
  config, weights, _, _ = recorded("llama")
  system = pretrained.load(folder(tmp_path, config, weights)).system
  assert not capabilities.has(system, capabilities.GeneratesText)
  # Tied to the words, the head is there.
  tied = pretrained.load(folder(tmp_path, {**config, "tie_word_embeddings": True}, weights))
  assert type(tied.system) is LanguageModel and tied.system.decoder.tie_embeddings
  # A language model that lost its head is damaged, and no encoder.
  lost = {f"model.{name}": x for name, x in weights.items()}
  with pytest.raises(UserError, match=r"missing: lm_head\.weight"):
    pretrained.load(folder(tmp_path, {**config, "architectures": ["LlamaForCausalLM"]}, lost))
  cut = pretrained.load(folder(tmp_path, config, lost))
  assert type(cut.system) is LLaMAEncoder


def test_a_part_of_a_head_is_told(tmp_path):
  config, weights, _, _ = recorded("bert_words")
  lost = {k: x for k, x in weights.items() if "transform.dense" not in k}
  with pytest.raises(UserError, match=r"missing: cls\.predictions\.transform\.dense\.bias"):
    pretrained.load(folder(tmp_path, config, lost))
  sentence = {**weights, "cls.seq_relationship.weight": np.zeros((2, 16), np.float32)}
  with pytest.raises(UserError, match=r"missing: bert\.pooler\.dense\.bias"):
    pretrained.load(folder(tmp_path, config, sentence))
  config, weights, _, _ = recorded("vit_pooler")
  other = {**weights, "decoder.weight": np.zeros((2, 16), np.float32)}
  with pytest.raises(UserError, match=r"surplus: decoder\.weight"):
    pretrained.load(folder(tmp_path, config, other))
  with pytest.raises(UserError, match="pooler_act is 'relu'"):
    pretrained.load(folder(tmp_path, {**config, "pooler_act": "relu"}, weights))


def test_timms_names_without_a_head_are_an_encoder(tmp_path):
  """DINO's and MAE's files are so."""
  with safe_open(PARITY / "vit.safetensors", "numpy") as file:
    weights = {
      k.removeprefix("timm/weights/"): file.get_tensor(k)
      for k in file.keys()
      if k.startswith("timm/weights/")
    }
  headed, headless = (
    pretrained.load(written)
    for written in (
      write(tmp_path / "a.safetensors", weights),
      write(
        tmp_path / "b.safetensors", {k: x for k, x in weights.items() if not k.startswith("head.")}
      ),
    )
  )
  image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 16, 3)), jnp.float32)
  assert type(headless.system) is ViTEncoder and headless.system.tower == headed.system.tower
  np.testing.assert_allclose(
    jax.jit(headless.system.embed_image)(headless.variables, image),
    jax.jit(headed.system.embed_image)(headed.variables, image),
    atol=1e-6,
  )
  half = {k: x for k, x in weights.items() if k != "head.weight"}
  with pytest.raises(UserError, match=r"the checkpoint has no head\.weight"):
    pretrained.load(write(tmp_path / "c.safetensors", half))


def write(path, weights):
  write_safetensors(path, {n: x.shape for n, x in weights.items()}, weights.items())
  return path


def test_words_alone_are_learned_without_a_label():
  """`BertForMaskedLM` has no second sentence to tell."""
  config, weights, _, _ = recorded("bert_words")
  shapes = {n: x.shape for n, x in weights.items()}
  system = (
    sys.modules["vlx.pretrained.load"].module("bert").from_hugging_face(config, shapes).system
  )
  assert "label" not in system.inputs()
  assert not any("pooler" in n or "next_sentence" in n for n in flatten(contract.shapes(system)))
  terms, aux = jax.eval_shape(
    lambda v, b, k: system.loss(v, b, k, step=0, train=True, frozen=frozenset()),
    contract.shapes(system),
    batch_shapes(system.inputs(), 3),
    jax.ShapeDtypeStruct((), jax.random.key(0).dtype),
  )
  assert terms.keys() == {"words"} and aux.metrics.keys() == {"words_accuracy"}
  assert terms["words"].sum.dtype == jnp.float32
