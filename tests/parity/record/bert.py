"""Records `transformers.BertForPreTraining` at tiny widths, and the names of its public file at
full size.

pip install torch==2.13.0 transformers==5.23.0 safetensors
python tests/parity/record/bert.py
"""

import torch
from common import hidden_states, public_file, redrawn, save, save_names
from transformers import BertConfig, BertForPreTraining

CASES = {
  "erf": dict(
    hidden_act="gelu",
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=16,
  ),
  "tanh": dict(
    hidden_act="gelu_new",
    vocab_size=40,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=56,
    max_position_embeddings=12,
    type_vocab_size=3,
  ),
}


def record(config: dict, seed: int) -> dict:
  model = redrawn(BertForPreTraining(BertConfig(**config, attn_implementation="eager")), seed)
  hidden = hidden_states([model.bert.embeddings, *model.bert.encoder.layer])
  length = 11
  text = torch.randint(0, config["vocab_size"], (3, length))
  text_mask = torch.arange(length) < torch.tensor([[length], [6], [1]])
  segments = torch.randint(0, config.get("type_vocab_size", 2), (3, length))
  with torch.no_grad():
    out = model(text, attention_mask=text_mask.long(), token_type_ids=segments)
    pooled = model.bert(
      text, attention_mask=text_mask.long(), token_type_ids=segments
    ).pooler_output
  return dict(
    config=config,
    weights=public_file(model),
    inputs=dict(text=text.int(), text_mask=text_mask, segments=segments.int()),
    outputs=dict(
      hidden=torch.stack(hidden[: config["num_hidden_layers"] + 1]),
      pooled=pooled,
      words=out.prediction_logits,
      next_sentence=out.seq_relationship_logits,
    ),
  )


if __name__ == "__main__":
  torch.manual_seed(0)
  save("bert", {name: record(config, seed) for seed, (name, config) in enumerate(CASES.items())})
  with torch.device("meta"):
    save_names("bert_base", BertForPreTraining(BertConfig()))
