"""Diffusion models and their autoencoders, by the smoke variants of their configs."""

import pytest

from tests.new_systems import harness
from vlx.core.config import load_config


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoencoder", "ddpm", "latent_diffusion"])
def test_a_run_goes_on_bit_for_bit_and_splits_over_devices(name, tmp_path):
  harness.exercise(load_config(f"configs/{name}.py:smoke"), tmp_path)


@pytest.mark.slow
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
