"""Readers of diffusers' folders and of the authors' files."""

import shutil

import numpy as np
from safetensors.numpy import save_file

from tests.fuzz import mutations as m
from tests.fuzz.beside import JSON, NEVER
from tests.fuzz.harness import Content, Reader
from tests.fuzz.weights import PARITY, load, read_model
from vlx.core.system import variable_shapes
from vlx.models.generation.autoencoder import VQAutoencoder
from vlx.pretrained import tables, unet


def _of_parity(name):
  return lambda folder: shutil.copytree(PARITY / name, folder, dirs_exist_ok=True)


def _opened(folder):
  """What there is, before a tensor is read: sizes are the configs'."""
  found = load.open_checkpoint(folder)
  said = found.tokenizer() and found.tokenizer().tokens("a cab")
  return Content((repr(found.system), sorted(map(str, found.shapes.items())), said))


def _autoencoder(folder):
  system = VQAutoencoder(
    image_size=256,
    latent_channels=2,
    inner_channels=2,
    num_codes=3,
    width=32,
    multipliers=(1, 1),
    num_blocks=1,
  )
  rng = np.random.default_rng(0)
  shapes = tables.public_shapes(
    unet.autoencoder_rows(system, diffusers=False), variable_shapes(system)
  )
  tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
  save_file(tensors, folder / "model.safetensors")


CONFIGS = {
  "*.json": JSON,
  "*/config.json": JSON,
  "scheduler/*.json": JSON,
  "tokenizer/*.json": JSON,
}
READERS = {
  "stable diffusion": Reader(_of_parity("stable_diffusion"), _opened, CONFIGS, never=NEVER),
  "text ldm": Reader(_of_parity("ldm_text"), _opened, CONFIGS, never=NEVER),
  "authors' file": Reader(_autoencoder, read_model, {"model.safetensors": (m.of_header,)}),
}
