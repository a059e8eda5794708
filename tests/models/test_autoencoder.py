"""The autoencoders of latent diffusion: their losses by hand, and what each player's turn moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import contract
from vlx.core.system import own
from vlx.models.generation.autoencoder import KLAutoencoder, VQAutoencoder
from vlx.models.vision.lpips import LPIPS
from vlx.models.vision.vgg import VGG, VGGTower

SIZES = dict(image_size=16, latent_channels=2, width=4, multipliers=(1, 2), num_blocks=1, groups=2)
PLAYERS = dict(
  adversarial_weight=0.5, adversarial_from=3, discriminator_width=4, discriminator_layers=1
)
IMAGE = jax.random.uniform(jax.random.key(7), (2, 16, 16, 3), minval=-1, maxval=1)


def terms(system, variables, player="autoencoder", step=5):
  def loss(variables):
    return system.loss(
      variables,
      {"image": IMAGE},
      jax.random.key(1),
      step=step,
      train=True,
      frozen=frozenset(),
      player=player,
    )

  return jax.jit(loss)(variables)


def call(system, method, *inputs):
  return jax.jit(getattr(system, method))(*inputs)


def test_published_parameter_counts():
  count = lambda system: sum(x.size for x in jax.tree.leaves(contract.shapes(system)))
  assert count(KLAutoencoder(image_size=256, latent_channels=4)) == 83_653_863


def test_the_kl_loss_by_hand():
  system = KLAutoencoder(**SIZES, learned_scale=True)
  variables = contract.init(system)
  variables["params"]["log_scale"] = jnp.float32(0.5)
  found, aux = terms(system, variables)
  mean, log_variance = map(np.asarray, call(system, "posterior", variables, IMAGE))
  latents = call(system, "encode_latents", variables, IMAGE, jax.random.key(1))
  l1 = np.abs(call(system, "decode_latents", variables, latents) - IMAGE).sum((1, 2, 3))
  size = IMAGE[0].size
  assert found["reconstruction"].mean == pytest.approx(
    (l1 * np.exp(-0.5) + 0.5 * size).mean(), rel=1e-5
  )
  assert aux.metrics["l1"] == pytest.approx(l1.mean() / size, rel=1e-5)
  kl = 0.5 * (np.square(mean) + np.exp(log_variance) - 1 - log_variance).sum((1, 2, 3)).mean()
  assert found["kl"].mean == pytest.approx(float(kl), rel=1e-5) and found["kl"].weight == 1e-6
  assert system.players == {}


def test_the_adaptive_weight_makes_both_gradients_as_long_at_the_last_layer():
  system = KLAutoencoder(**SIZES, **PLAYERS)
  variables = contract.init(system)
  found, aux = terms(system, variables)

  def gradient(name):
    def value(kernel):
      params = {**variables["params"], "out": {**variables["params"]["out"], "kernel": kernel}}
      return terms(system, {**variables, "params": params})[0][name].mean

    return np.linalg.norm(jax.jit(jax.grad(value))(variables["params"]["out"]["kernel"]))

  expected = gradient("reconstruction") / (gradient("adversarial") + 1e-4)
  assert aux.metrics["adaptive_weight"] == pytest.approx(expected, rel=1e-3)
  assert found["adversarial"].weight == pytest.approx(0.5 * expected, rel=1e-3)
  assert terms(system, variables, step=2)[0]["adversarial"].weight == 0


@pytest.mark.parametrize("kind", [KLAutoencoder, VQAutoencoder])
def test_the_discriminators_turn_is_a_hinge_that_leaves_the_autoencoder_alone(kind):
  system = kind(**SIZES, **PLAYERS, **(dict(num_codes=8) if kind is VQAutoencoder else {}))
  variables = contract.init(system)

  def value(params, step):
    found, _ = terms(system, {**variables, "params": params}, "discriminator", step)
    return sum(term.mean * term.weight for term in found.values())

  both = jax.jit(jax.value_and_grad(value))
  loss, gradient = both(variables["params"], 5)
  assert 0 < loss < 3 and both(variables["params"], 2)[0] == 0
  moved = own({"params": gradient, "state": {}}, "discriminator")["params"]
  assert all(np.abs(x).max() == 0 for x in jax.tree.leaves(moved))
  assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(gradient["discriminator"]))


def test_codes_are_rounded_by_the_decoder_alone():
  system = VQAutoencoder(**SIZES, num_codes=8)
  variables = contract.init(system)
  variables["params"]["codebook"] *= 20
  latents = call(system, "encode_latents", variables, IMAGE, jax.random.key(0))
  ids = call(system, "image_to_tokens", variables, IMAGE)
  codebook = variables["params"]["codebook"]
  distances = np.square(np.asarray(latents)[..., None, :] - codebook).sum(-1)
  np.testing.assert_array_equal(ids, distances.argmin(-1))
  assert np.abs(codebook[ids] - latents).max() > 0.01
  decoded = call(system, "decode_latents", variables, latents)
  np.testing.assert_allclose(decoded, call(system, "tokens_to_image", variables, ids), atol=1e-5)
  np.testing.assert_allclose(decoded, call(system, "reconstruct", variables, IMAGE), atol=1e-5)


def test_lpips_by_hand_and_as_a_part():
  vgg = VGG(VGGTower(convolutions=(1, 1), width=4, image_size=16), num_classes=3, hidden=8)
  lpips = LPIPS(vgg, channels=(4, 8))
  system = KLAutoencoder(**SIZES, perceptual=lpips, perceptual_weight=2.0)
  variables = contract.init(system)
  mine = {k: v["perceptual"] for k, v in variables.items()}
  mine["params"]["linear1"] = jnp.arange(8.0)
  other = jnp.roll(IMAGE, 1, axis=0)
  below = {k: v["network"] for k, v in mine.items()}
  expected = 0.0
  for weights, a, b in zip(
    (np.ones(4), np.arange(8.0)), vgg.feature_maps(below, IMAGE), vgg.feature_maps(below, other)
  ):
    unit = lambda x: np.asarray(x) / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-10)
    expected += (np.square(unit(a) - unit(b)) * weights).sum(-1).mean((1, 2))
  np.testing.assert_allclose(lpips.image_distance(mine, IMAGE, other), expected, rtol=1e-4)
  np.testing.assert_allclose(lpips.image_distance(mine, IMAGE, IMAGE), 0, atol=1e-6)
  found, aux = terms(system, variables)
  l1, distance = float(aux.metrics["l1"]), float(aux.metrics["lpips"])
  assert found["reconstruction"].mean == pytest.approx(
    (l1 + 2 * distance) * IMAGE[0].size, rel=1e-4
  )


def test_sides_that_do_not_divide_are_told():
  with pytest.raises(ValueError, match="an image of 18 pixels does not divide by 4"):
    KLAutoencoder(image_size=18, latent_channels=2, multipliers=(1, 2, 4))
