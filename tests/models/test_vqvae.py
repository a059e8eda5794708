"""VQ-VAE: how a codebook moves, what its losses reach, codes in use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import contract
from vlx.core import config as configs
from vlx.core.errors import UserError
from vlx.models.generation import vqvae
from vlx.models.generation.vqvae import VQVAE

SMALL = dict(image_size=16, widths=(8, 8), num_blocks=1, residual_width=4, num_codes=6, code_dim=3)


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def started(**fields):
  system, batch = VQVAE(**{**SMALL, **fields}), {"image": normal(4, 16, 16, 3)}
  return system, contract.init(system), batch


def update_codebook_ema(averages, z, ids, **how):
  return vqvae.update_codebook_ema(
    averages, z, ids, jax.random.key(0), **{"decay": 0.9, "restart_below": 0.0, **how}
  )


def test_after_one_batch_a_code_is_the_mean_of_its_rows():
  """Bias-corrected, so whatever the decay."""
  z, ids = normal(2, 4, 4, 3), jnp.asarray(np.arange(32).reshape(2, 4, 4) % 5)
  for decay in (0.5, 0.99):
    codebook = update_codebook_ema(vqvae.init_averages(normal(6, 3)), z, ids, decay=decay)[
      "codebook"
    ]
    means = np.stack([z[ids == code].mean(0) for code in range(5)])
    np.testing.assert_allclose(codebook[:5], means, atol=1e-4)


def test_averages_forget_at_the_rate_of_decay():
  """n batches of one mean, then as many of another: weights γⁿ(1 − γⁿ) and 1 − γⁿ, over 1 − γ²ⁿ."""
  ids, averages, n = jnp.zeros((1, 2, 2), int), vqvae.init_averages(normal(1, 3)), 3
  for value in [1.0] * n + [2.0] * n:
    averages = update_codebook_ema(averages, jnp.full((1, 2, 2, 3), value), ids)
  old = 0.9**n * (1 - 0.9**n) / (1 - 0.9 ** (2 * n))
  np.testing.assert_allclose(averages["codebook"], np.full((1, 3), old + 2 * (1 - old)), rtol=1e-4)


def test_codes_that_nothing_is_near_to_start_anew_at_rows_of_the_batch():
  z, ids = normal(2, 4, 4, 3), jnp.zeros((2, 4, 4), int)
  averages = update_codebook_ema(vqvae.init_averages(normal(6, 3)), z, ids, restart_below=1.0)
  rows = np.asarray(z).reshape(-1, 3)
  np.testing.assert_allclose(averages["codebook"][0], rows.mean(0), atol=1e-5)
  for code in averages["codebook"][1:]:
    assert np.abs(rows - code).sum(1).min() < 1e-4
  assert len(np.unique(np.asarray(averages["codebook"][1:]).round(4), axis=0)) > 1


@pytest.mark.parametrize("codebook", ["ema", "loss"])
def test_what_training_moves(codebook):
  """The image's error reaches the encoder past the codes; the codebook moves by its own rule
  alone.
  """
  system, variables, batch = started(codebook=codebook, beta=0.0)

  def loss(params, train):
    return contract.loss(
      system, {**variables, "params": params}, batch, jax.random.key(1), step=0, train=train
    )

  gradients, aux = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(
    variables["params"], True
  )
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients["encoder"]))
  _, evaluated = jax.jit(loss, static_argnums=1)(variables["params"], False)
  jax.tree.map(np.testing.assert_array_equal, evaluated.state, variables["state"])
  if codebook == "loss":
    z = system.network.apply({"params": variables["params"]}, batch["image"], method="encode")
    own = jax.grad(lambda c: vqvae.quantize(z, c).codebook_loss)(variables["params"]["codebook"])
    np.testing.assert_allclose(gradients["codebook"], own, atol=1e-6)
    assert aux.state == {}
  else:
    assert np.abs(aux.state["codebook"] - variables["state"]["codebook"]).max() > 1e-3


def test_loss_is_its_terms():
  system, variables, batch = started(beta=0.5, data_variance=2.0)
  loss, aux = jax.jit(
    lambda v, b: contract.loss(system, v, b, jax.random.key(0), step=0, train=True)
  )(variables, batch)
  image = jax.jit(system.reconstruct)(variables, batch["image"])
  error = np.mean((np.asarray(batch["image"]) - image) ** 2)
  np.testing.assert_allclose(aux.metrics["reconstruction"], error / 2.0, rtol=1e-5)
  np.testing.assert_allclose(loss, error / 2.0 + 0.5 * aux.metrics["commitment"], rtol=1e-5)


def test_images_to_codes_and_back():
  system, variables, batch = started()
  ids = system.image_to_tokens(variables, batch["image"])
  assert ids.shape == (4, *system.grid) and system.grid == (4, 4)
  assert system.tokens_to_image(variables, ids).shape == batch["image"].shape
  # What a code stands for is what the codebook says: images of the nearest codes encode to them.
  z = system.network.apply({"params": variables["params"]}, batch["image"], method="encode")
  distances = jnp.sum((z[..., None, :] - variables["state"]["codebook"]) ** 2, -1)
  np.testing.assert_array_equal(ids, distances.argmin(-1))


def test_usage():
  measures = vqvae.codebook_usage(jnp.array([[0, 0, 1, 1], [2, 2, 3, 3]]), 8)
  np.testing.assert_allclose(measures["perplexity"], 4.0, rtol=1e-6)
  np.testing.assert_allclose(measures["codes_used"], 50.0)


def test_the_published_architecture():
  """§4.1: two 4x4 convolutions of stride 2 of 256 units; mirrored."""
  system = VQVAE(128, (256, 256), 2, 256, 512, 256, codebook="loss")
  assert system.grid == (32, 32)
  params = contract.shapes(system)["params"]
  shapes = {p["kernel"].shape for p in (params["encoder"]["halve0"], params["encoder"]["halve1"])}
  assert shapes == {(4, 4, 3, 256), (4, 4, 256, 256)}
  assert params["decoder"]["double1"]["kernel"].shape == (4, 4, 256, 3)
  assert params["codebook"].shape == (512, 256)


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(codebook="kmeans"), "'ema' or 'loss', not 'kmeans'"),
    (dict(codebook="loss", restart_below=1.0), "restart_below needs the counts"),
    (dict(image_size=18), "18 pixels cannot be halved 2 times"),
  ],
)
def test_fields_that_do_not_go_together_are_told(change, message):
  with pytest.raises(UserError, match=message):
    configs.build(VQVAE, {**SMALL, **change}, "model")
