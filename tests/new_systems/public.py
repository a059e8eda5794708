"""A CLIP and a LLaMA as others publish them: files of tensors, a config.json, a tokenizer with a
chat template.
"""

import json
import re

import jax
import numpy as np
import tokenizers

from tests import contract
from vlx.core.config import build
from vlx.data.sources import open_source
from vlx.models.contrastive.clip import CLIP
from vlx.models.language.llama import LanguageModel, LLaMA
from vlx.pretrained import clip, llama, tables
from vlx.pretrained.formats.safetensors import write_safetensors

TEMPLATE = (
  "{% for m in messages %}{{ m.role }} : {{ m.content }} {% if m.role == 'assistant' %}</s> {% endif %}{% endfor %}"
  "{% if add_generation_prompt %}assistant : {% endif %}"
)


def _publish(folder, family, system):
  """What `save_pretrained` leaves."""
  folder.mkdir()
  variables = jax.tree.map(np.asarray, contract.init(system))
  config, layout = family.to_hugging_face(system)
  write_safetensors(
    folder / "model.safetensors",
    tables.public_shapes(layout.rows, variables),
    tables.export(layout.rows, variables),
  )
  (folder / "config.json").write_text(json.dumps(config))


def _publish_tokenizer(folder):
  """Words, a token for an image, a chat template."""
  said = " ".join(
    f"{q} {a}"
    for record in open_source("scenes:64?size=16&held_out=16", "train")
    for q, a in record["questions"]
  )
  words = sorted(set(re.findall(r"\w+|[^\w\s]+", said)) | {"user", "assistant", ":"})
  vocabulary = {w: i for i, w in enumerate(["<unk>", "<s>", "</s>", "<image>", *words][:200])}
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "<unk>"))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  backend.add_special_tokens(["<s>", "</s>", "<image>"])
  backend.save(str(folder / "tokenizer.json"))
  said = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
  (folder / "tokenizer_config.json").write_text(json.dumps(said))


def publish(folder):
  """Their two folders: towers of width 24, a decoder of width 16 and 4 layers, 200 words."""
  tower = dict(
    width=24, depth=2, num_heads=2, mlp_dim=24, activation="quick_gelu", layer_norm_epsilon=1e-5
  )
  _publish(
    folder / "clip",
    clip,
    build(
      CLIP,
      dict(
        image=dict(image_size=16, patch_size=8, patch_bias=False, pre_norm=True, **tower),
        text=dict(vocab_size=60, context_length=8, **tower),
        embed_dim=12,
      ),
      "model",
    ),
  )
  _publish(
    folder / "llama",
    llama,
    LanguageModel(
      LLaMA(
        vocab_size=200,
        width=16,
        depth=4,
        num_heads=2,
        num_groups=1,
        mlp_dim=24,
        context_length=64,
        epsilon=1e-5,
      )
    ),
  )
  _publish_tokenizer(folder / "llama")
  return [str(folder / name) for name in ("clip", "llama")]
