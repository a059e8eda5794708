"""Diffusion models and their autoencoders, by the smoke variants of their configs."""

import json
import shutil

import jax
import numpy as np
import pytest

import vlx
from tests import contract
from tests.new_systems import harness
from vlx.core.config import load_config
from vlx.models.pretraining.bert import BERT, BERTEncoder
from vlx.pretrained import bert, tables
from vlx.pretrained.formats.safetensors import write_safetensors

pytestmark = pytest.mark.slow
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize("name", ["autoencoder", "ddpm"])
def test_a_run_goes_on_bit_for_bit_and_splits_over_devices(name, tmp_path):
  harness.exercise(load_config(f"configs/{name}.py:smoke"), tmp_path)


def test_the_adversarial_autoencoder_too(tmp_path):
  config = load_config("configs/autoencoder.py:smoke")
  with config.unlocked():
    # Rounding grows where Adam divides small gradients by themselves, and each player follows the other.
    config.optim.lr = 1e-5
    config.model.update(
      adversarial_weight=0.5, adversarial_from=0, discriminator_width=4, discriminator_layers=1
    )
  run = harness.exercise(config, tmp_path)
  assert set(run.players) == {"autoencoder", "discriminator"}


def public_bert(folder):
  """What `BertModel.save_pretrained` and its tokenizer leave."""
  folder.mkdir()
  system = BERTEncoder(
    BERT(vocab_size=40, context_length=16, width=16, depth=2, num_heads=2, mlp_dim=16)
  )
  variables = jax.tree.map(np.asarray, contract.init(system))
  config, layout = bert.to_hugging_face(system)
  shapes = tables.public_shapes(layout.rows, variables)
  write_safetensors(folder / "model.safetensors", shapes, tables.export(layout.rows, variables))
  (folder / "config.json").write_text(json.dumps(config))
  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{c}" for c in "aeiours")]
  (folder / "vocab.txt").write_text("\n".join(words) + "\n")
  return variables


def test_latent_diffusion_above_a_run_and_a_public_text_encoder_in_half_precision(tmp_path):
  autoencoder, text = tmp_path / "autoencoder", tmp_path / "bert"
  given = public_bert(text)
  harness.train(load_config("configs/autoencoder.py:smoke"), autoencoder)
  config = load_config("configs/latent_diffusion.py:smoke")
  with config.unlocked():
    config.model.autoencoder = dict(source=str(autoencoder))
    config.model.text_encoder = dict(source=str(text))
    config.init = ()
    config.tokenizer = dict(kind="public", path=str(text), vocab_size=40, fields=("caption",))
    config.optim.update(
      dict(ema_decay=0.9, rules=((r"text_encoder/.*", dict(frozen=True, dtype="bfloat16")),))
    )
  run = harness.exercise(config, tmp_path)
  trained = vlx.load(autoencoder).variables["params"]
  for folder in (autoencoder, text):  # nobody needs them any more
    shutil.rmtree(folder)

  model = vlx.load(run.workdir)
  found = model.variables["params"]
  jax.tree.map(np.testing.assert_array_equal, found["autoencoder"], trained)
  half = jax.tree.map(lambda x: x.astype("bfloat16"), given["params"])
  jax.tree.map(np.testing.assert_array_equal, found["text_encoder"], half)
  moving = [name for name in harness.last_state(run) if not name.startswith("frozen/")]
  assert not any("autoencoder" in name or "text_encoder" in name for name in moving)

  scale = float(model.variables["state"]["latents"]["scale"])
  assert scale != 1 and 0.01 < scale < 1e4
  images = model.generate_images("cab", 2, num_steps=3, guidance_scale=2.0)
  assert images.shape == (2, 16, 16, 3)
  results = json.loads((run.workdir / "results.json").read_text())["measures"]
  assert {"loss/combo/error", "generation/combo/samples/border"} <= results.keys()

  compiled = harness.compiles_for_a_pod(run.config)
  assert compiled["bytes_per_device"]["frozen"] > 0
