"""SmolLM2-135M from its GGUF file against transformers on the same dequantised weights; its tokenizer."""

import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors import safe_open

from vlx.data.tokenizers import public as public_tokenizers
from vlx.generate import text
from vlx.inference.autoregressive import generate
from vlx.inference.sampling import Sampling
from vlx.pretrained.formats.gguf import open_gguf

with safe_open(pathlib.Path(__file__).parent / "smollm2.safetensors", "numpy") as file:
  RECORDED = json.loads(file.metadata()["greedy"])
  TOKENS, LOGITS = (file.get_tensor(f"greedy/outputs/{name}") for name in ("tokens", "logits"))


def test_tokens_and_chat_template():
  tokenizer = public_tokenizers.from_gguf(open_gguf(text.smollm2()).metadata)
  assert [tokenizer.tokens(t) for t in RECORDED["texts"]] == RECORDED["text_ids"]
  assert [tokenizer.tokens(t) for t in RECORDED["prompts"]] == RECORDED["prompt_ids"]
  assert tokenizer.render(RECORDED["chat"]) == RECORDED["prompts"][-1]
  assert tokenizer.chat(RECORDED["chat"]) == RECORDED["prompt_ids"][-1]
  assert tokenizer.stop_ids == (0, 2)
  assert tokenizer.decode(TOKENS[1]) == RECORDED["decoded"][1]


@pytest.mark.slow
def test_logits_and_64_greedy_tokens():
  system, variables, tokenizer = text.load("smollm2")
  logits = jax.jit(system.logits)
  for prompt, expected in zip(RECORDED["prompt_ids"], LOGITS, strict=True):
    padded = np.zeros((1, 64), np.int32)
    padded[0, : len(prompt)] = prompt
    found = logits(variables, padded)[0, len(prompt) - 1, :: RECORDED["every"]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4 * np.abs(expected).max())
  assert generate(system, variables, RECORDED["prompt_ids"], max_tokens=64) == TOKENS.tolist()

  pieces = []
  answer = text.write(
      system, variables, tokenizer, "What is the capital of France?", chat=True, max_tokens=32,
      sampling=Sampling(), seed=0, show=pieces.append,
  )
  assert "Paris" in answer and "".join(pieces) == answer
