"""SmolLM2-135M from its GGUF file against transformers on the same dequantised weights; its
tokenizer.
"""

import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors import safe_open

import vlx
from vlx.data.tokenizers import public as public_tokenizers
from vlx.generate.outputs import smollm2
from vlx.inference.autoregressive import generate
from vlx.pretrained.formats.gguf import open_gguf

with safe_open(pathlib.Path(__file__).parent / "smollm2.safetensors", "numpy") as file:
  RECORDED = json.loads(file.metadata()["greedy"])
  TOKENS, LOGITS = (file.get_tensor(f"greedy/outputs/{name}") for name in ("tokens", "logits"))


def test_tokens_and_chat_template():
  tokenizer = public_tokenizers.from_gguf(open_gguf(smollm2()).metadata)
  assert [tokenizer.rendered_ids(t) for t in RECORDED["texts"]] == RECORDED["text_ids"]
  assert [tokenizer.rendered_ids(t) for t in RECORDED["prompts"]] == RECORDED["prompt_ids"]
  for text, ids in zip(RECORDED["texts"], RECORDED["text_ids"], strict=True):
    assert (tokenizer.tokens(text) == ids) == ("<|" not in text)
  assert tokenizer.render(RECORDED["chat"]) == RECORDED["prompts"][-1]
  assert tokenizer.chat(RECORDED["chat"]) == RECORDED["prompt_ids"][-1]
  assert tokenizer.stop_ids == (0, 2)
  assert tokenizer.decode(TOKENS[1]) == RECORDED["decoded"][1]


@pytest.mark.slow
def test_logits_and_64_greedy_tokens():
  model = vlx.load(
    smollm2(), jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), devices=jax.devices()[:1])
  )
  system, variables = model.system.for_decoding(model.variables)
  logits = jax.jit(system.token_logits)
  for prompt, expected in zip(RECORDED["prompt_ids"], LOGITS, strict=True):
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(prompt)] = prompt
    found = logits(variables, padded)[0, len(prompt) - 1, :: RECORDED["every"]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.abs(expected).max())
  assert generate(system, variables, RECORDED["prompt_ids"], max_tokens=64)[0] == TOKENS.tolist()

  pieces = []
  answer, chat = model.chat("What is the capital of France?", max_tokens=32, show=pieces.append)
  assert "Paris" in answer and "".join(pieces) == answer
  again, _ = model.chat("And of Italy?", history=chat, max_tokens=32)
  assert "Rome" in again
