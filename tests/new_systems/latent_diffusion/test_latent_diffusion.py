"""Two frozen parts: one of a run, one of a public checkpoint in half precision."""

import json
import shutil

import jax
import numpy as np
import pytest

import vlx
from tests import contract
from tests.new_systems import harness
from tests.new_systems.latent_diffusion.config import autoencoder, get_config
from vlx.models.pretraining.bert import BERT, BERTEncoder
from vlx.pretrained import bert, tables
from vlx.pretrained.formats.safetensors import write_safetensors

LETTERS = "abcdefghijklmnopqrstuvwxyz"


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


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("ldm")
  given = public_bert(folder / "bert")
  harness.train(autoencoder(), folder / "autoencoder")
  run = harness.exercise(get_config(str(folder / "autoencoder"), str(folder / "bert")), folder)
  trained = vlx.load(folder / "autoencoder").variables
  for name in ("autoencoder", "bert"):  # nobody needs them any more
    shutil.rmtree(folder / name)
  return run, given, trained


def test_the_parts_are_what_they_were_and_only_the_rest_learned(run):
  run, given, trained = run
  found = vlx.load(run.workdir).variables["params"]
  jax.tree.map(np.testing.assert_array_equal, found["autoencoder"], trained["params"])
  half = jax.tree.map(lambda x: x.astype("bfloat16"), given["params"])
  jax.tree.map(np.testing.assert_array_equal, found["text_encoder"], half)
  moving = [name for name in harness.last_state(run) if not name.startswith("frozen/")]
  assert not any("autoencoder" in name or "text_encoder" in name for name in moving)


def test_the_latents_scale_was_prepared_from_data(run):
  scale = float(vlx.load(run[0].workdir).variables["state"]["latent"]["scale"])
  assert scale != 1 and 0.01 < scale < 1e4


def test_it_samples_by_its_own_sampler_and_is_evaluated(run):
  run, *_ = run
  model = vlx.load(run.workdir)
  images = model.generate_images("cab", 2, num_steps=3, guidance_scale=2.0)
  assert images.shape == (2, 16, 16, 3)
  results = json.loads((run.workdir / "results.json").read_text())["measures"]
  assert results.keys() == {"loss/combo/noise", "loss/combo/loss"}
  assert 0.5 < results["loss/combo/noise"] < 3


@pytest.mark.slow
def test_it_compiles_for_a_pod(run):
  found = harness.compiles_for_a_pod(run[0].config)
  assert found["bytes_per_device"]["frozen"] > 0
