"""What `vlx.convert` writes for Hugging Face gives in transformers what it gave in vlx.

The suite has no torch: record/exported.py runs in an interpreter that has torch and transformers,
the one that the environment variable VLX_TRANSFORMERS_PYTHON names, else this one.
"""

import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded import PARITY, Recorded, assert_parity
from safetensors import numpy as safetensors

from vlx import convert
from vlx.models.pretraining.bert import BERTEncoder
from vlx.pretrained.load import module

INTERPRETER = "VLX_TRANSFORMERS_PYTHON"
PUBLIC_INPUTS = {
  "text": "input_ids",
  "text_mask": "attention_mask",
  "segments": "token_type_ids",
  "image": "pixel_values",
}


def bert(system, variables, given):
  words, sentence = system.word_logits(
    variables, given["text"], given["text_mask"], given["segments"]
  )
  return dict(prediction_logits=words, seq_relationship_logits=sentence)


def bert_tower(system, variables, given):
  pooled, tokens = system.tower.apply(
    {"params": variables["params"]}, given["text"], given["text_mask"], given["segments"]
  )
  return dict(pooler_output=pooled, last_hidden_state=tokens)


def clip(system, variables, given):
  unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
  return dict(
    image_embeds=unit(system.embed_image(variables, given["image"])),
    text_embeds=unit(system.embed_text(variables, given["text"], given["text_mask"])),
  )


def bert_words(system, variables, given):
  return dict(logits=system.word_logits(variables, given["text"], given["text_mask"])[0])


def llama_tower(system, variables, given):
  states = system.encode_text(variables, given["text"], given["text_mask"])
  return dict(last_hidden_state=states)


def vit_tower(system, variables, given):
  return dict(
    last_hidden_state=system.encode_image(variables, given["image"]),
    pooler_output=system.embed_image(variables, given["image"]),
  )


def llama(system, variables, given):
  return dict(logits=system.token_logits(variables, given["text"]))


def vit(system, variables, given):
  return dict(logits=system.class_logits(variables, given["image"]))


# Where the weights were recorded, and outputs by transformers' names.
CASES = {
  "bert": ("bert", "tanh", bert),
  "bert_tower": ("bert", "erf", bert_tower),
  "llama_groups": ("llama", "groups", llama),
  "llama_tied": ("llama", "tied", llama),
  "clip": ("clip_hf", "greatest", clip),
  "vit": ("vit", "hf", vit),
  "bert_words": ("headless", "bert_words", bert_words),
  "llama_tower": ("headless", "llama", llama_tower),
  "vit_tower": ("headless", "vit_pooler", vit_tower),
}


def model(case):
  """(system, variables, inputs)"""
  file, name, _ = CASES[case]
  recorded = Recorded(file, name)
  family = recorded.config["model_type"] if file == "headless" else file.removesuffix("_hf")
  layout = module(family).from_hugging_face(recorded.config, recorded.shapes)
  system, variables = layout.system, recorded.load_system(layout)
  if case == "bert_tower":  # a class of its own there
    system = BERTEncoder(system.tower)
    variables = {**variables, "params": variables["params"]["tower"]}
  return system, variables, recorded.inputs


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Where each case was exported to and run by transformers."""
  python = os.environ.get(INTERPRETER)
  if python is None and not all(map(importlib.util.find_spec, ("torch", "transformers"))):
    pytest.skip(f"needs torch and transformers: {INTERPRETER} names an interpreter that has them")
  root = tmp_path_factory.mktemp("exported")
  for case in CASES:
    system, variables, given = model(case)
    convert.save_vlx(root / "vlx" / case, system, variables, "")
    convert.to_hugging_face(root / "vlx" / case, root / case)
    public = {PUBLIC_INPUTS[k]: x for k, x in given.items() if k in PUBLIC_INPUTS}
    public = {
      k: np.ascontiguousarray(np.moveaxis(x, -1, 1)) if x.ndim == 4 else x.astype(np.int64)
      for k, x in public.items()
    }
    safetensors.save_file(public, root / case / "inputs.safetensors")
  script = PARITY / "record" / "exported.py"
  subprocess.run([python or sys.executable, script, *(root / case for case in CASES)], check=True)
  return root


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_transformers_says_the_same(folders, case):
  system, variables, given = model(case)
  expected = safetensors.load_file(folders / case / "outputs.safetensors")
  found = jax.jit(lambda variables, given: CASES[case][2](system, variables, given))(
    variables, given
  )
  mask = given.get("text_mask")
  for name, x in found.items():
    # What stands at padding is nobody's business.
    of_tokens = mask is not None and x.shape[:2] == mask.shape and x.ndim == 3
    ours, theirs = (np.asarray(y)[mask if of_tokens else ...] for y in (x, expected[name]))
    assert_parity(ours, theirs)
