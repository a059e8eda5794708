"""Records what transformers saves and says without a classifier, a pooler, a second head, a
language model's head, at tiny widths.

pip install torch==2.13.0 transformers==5.23.0 safetensors
python tests/parity/record/headless.py
"""

import torch
from common import public_file, redrawn, save
from transformers import (
  BertConfig,
  BertForMaskedLM,
  BertModel,
  LlamaConfig,
  LlamaModel,
  ViTConfig,
  ViTModel,
)

SIZES = dict(
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=24,
  attn_implementation="eager",
)
BERT = BertConfig(**SIZES, vocab_size=30, max_position_embeddings=10)
VIT = ViTConfig(**SIZES, image_size=8, patch_size=4)
LLAMA = LlamaConfig(**SIZES, num_key_value_heads=1, vocab_size=30, max_position_embeddings=16)
MODELS = {
  "bert_words": BertForMaskedLM(BERT),
  "bert_no_pooler": BertModel(BERT, add_pooling_layer=False),
  "bert_pooler": BertModel(BERT),
  "vit_pooler": ViTModel(VIT),
  "vit_no_pooler": ViTModel(VIT, add_pooling_layer=False),
  "llama": LlamaModel(LLAMA),
}


def record(name: str, model: torch.nn.Module, seed: int) -> dict:
  model = redrawn(model, seed)
  if name.startswith("vit"):
    image = torch.randn(2, 3, 8, 8)
    inputs, given = dict(image=image.permute(0, 2, 3, 1)), dict(pixel_values=image)
  else:
    text, text_mask = torch.randint(0, 30, (2, 7)), torch.arange(7) < torch.tensor([[7], [4]])
    inputs = dict(text=text.int(), text_mask=text_mask)
    given = dict(input_ids=text, attention_mask=text_mask.long())
  with torch.no_grad():
    found = model(**given)
  outputs = {
    k: found[k]
    for k in ("last_hidden_state", "pooler_output", "logits")
    if found.get(k) is not None
  }
  config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
  return dict(config=config, weights=public_file(model), inputs=inputs, outputs=outputs)


if __name__ == "__main__":
  torch.manual_seed(0)
  save("headless", {n: record(n, m, seed) for seed, (n, m) in enumerate(MODELS.items())})
