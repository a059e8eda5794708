"""Writes the recorded BERT (bert.safetensors, case `tanh`) as Google's code keeps one: TensorFlow's
own checkpoint under Google's names, with what its optimizer leaves there.

pip install tensorflow-cpu==2.21.0 safetensors
python tests/parity/record/google_bert.py
"""

import json
import pathlib
import re

import numpy as np
import tensorflow as tf
from safetensors import safe_open

PARITY = pathlib.Path(__file__).resolve().parents[1]
FOLDER = PARITY / "google_bert"
# Hugging Face's names → Google's, one after another (`load_tf_weights_in_bert`, turned round).
NAMES = (
  (r"\.", "/"),
  (r"layer/(\d+)", r"layer_\1"),
  (r"(_embeddings)/weight$", r"\1"),
  (r"LayerNorm/weight$", "LayerNorm/gamma"),
  (r"LayerNorm/bias$", "LayerNorm/beta"),
  (r"cls/predictions/bias$", "cls/predictions/output_bias"),
  (r"seq_relationship/weight$", "seq_relationship/output_weights"),
  (r"seq_relationship/bias$", "seq_relationship/output_bias"),
  (r"/weight$", "/kernel"),
)


def renamed(name: str) -> str:
  for pattern, replacement in NAMES:
    name = re.sub(pattern, replacement, name)
  return name


if __name__ == "__main__":
  tensors = {}
  with safe_open(PARITY / "bert.safetensors", "numpy") as file:
    config = json.loads(file.metadata()["tanh"])
    for key in file.keys():
      if key.startswith("tanh/weights/"):
        name, x = renamed(key.removeprefix("tanh/weights/")), file.get_tensor(key)
        tensors[name] = np.ascontiguousarray(x.T) if name.endswith("/kernel") else x
  for slot in ("adam_m", "adam_v"):
    tensors[f"cls/predictions/output_bias/{slot}"] = np.zeros(config["vocab_size"], np.float32)
  tensors["global_step"] = np.int64(1000)
  FOLDER.mkdir(exist_ok=True)
  # The operation behind tf.train.Saver.
  tf.raw_ops.SaveV2(
    prefix=str(FOLDER / "bert_model.ckpt"),
    tensor_names=list(tensors),
    shape_and_slices=[""] * len(tensors),
    tensors=list(tensors.values()),
  )
  config = {"type_vocab_size": 2, **config, "hidden_act": "gelu"}
  (FOLDER / "bert_config.json").write_text(json.dumps(config, indent=2) + "\n")
  special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  letters = [chr(ord("a") + i) for i in range(26)]
  words = [*special, *letters, *(f"##{c}" for c in letters)][: config["vocab_size"]]
  (FOLDER / "vocab.txt").write_text("\n".join(words) + "\n")
