"""A text-conditional GAN of two players, after GAN-CLS (Reed et al., 2016): a toy that holds the
contract to account.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlx.core.system import Aux, Term, image_input, text_inputs
from vlx.models.layers import apply


def embed_words(embedding: nn.Embed, text, text_mask):
  """`[B, width]`: the mean over real tokens."""
  weight = text_mask[..., None].astype(jnp.float32)
  return (embedding(text) * weight).sum(1) / weight.sum(1)


class Generator(nn.Module):
  """Noise and a text → image `[B, 16, 16, 3]`."""

  vocab_size: int
  width: int

  @nn.compact
  def __call__(self, noise, text, text_mask, *, train: bool = False):
    words = embed_words(nn.Embed(self.vocab_size, self.width, name="words"), text, text_mask)
    x = nn.Dense(16 * self.width, name="start")(jnp.concatenate([noise, words], -1)).reshape(
      -1, 4, 4, self.width
    )
    for i in range(2):
      x = nn.relu(nn.BatchNorm(not train, momentum=0.9, name=f"norm{i}")(x))
      x = nn.ConvTranspose(3 if i else self.width, (4, 4), (2, 2), name=f"double{i}")(x)
    return jnp.tanh(x)


class Discriminator(nn.Module):
  """Image and text → logit of being real and fitting."""

  vocab_size: int
  width: int

  @nn.compact
  def __call__(self, image, text, text_mask, *, train: bool = False):
    x = image
    for i in range(2):
      x = nn.leaky_relu(nn.Conv(self.width * (i + 1), (4, 4), (2, 2), name=f"halve{i}")(x), 0.2)
    words = embed_words(nn.Embed(self.vocab_size, self.width, name="words"), text, text_mask)
    x = jnp.concatenate([x.reshape(len(x), -1), words], -1)
    return nn.Dense(1, name="out")(nn.leaky_relu(nn.Dense(self.width, name="hidden")(x), 0.2))[:, 0]


class Network(nn.Module):
  generator: Generator
  discriminator: Discriminator

  def sample(self, noise, text, text_mask, *, train=False):
    return self.generator(noise, text, text_mask, train=train)

  def judge(self, image, text, text_mask, *, train=False):
    return self.discriminator(image, text, text_mask, train=train)

  def __call__(self, noise, text, text_mask, *, train=False):
    return self.judge(
      self.sample(noise, text, text_mask, train=train), text, text_mask, train=train
    )


@dataclasses.dataclass(frozen=True)
class GAN:
  """The system: the discriminator's turn, then the generator's, on the same batch."""

  vocab_size: int
  text_length: int
  width: int = 8
  noise_dim: int = 4

  players = {"discriminator": r"discriminator/.*", "generator": r"generator/.*"}

  @dataclasses.dataclass(frozen=True)
  class Sampler:
    truncation: float = 1.0

  @property
  def network(self):
    return Network(
      Generator(self.vocab_size, self.width), Discriminator(self.vocab_size, self.width)
    )

  def inputs(self):
    return {"image": image_input(16), **text_inputs(self.text_length)}

  def init(self, rng):
    noise = {"noise": jax.ShapeDtypeStruct((self.noise_dim,), jnp.float32)}
    return apply.init(self.network, rng, {**self.inputs(), **noise}, "noise", "text", "text_mask")

  def loss(self, variables, batch, rng, *, step, train, frozen, player):
    text, text_mask = batch["text"], batch["text_mask"]
    noise = jax.random.normal(rng, (len(text), self.noise_dim))
    how = dict(rng=rng, train=train, frozen=frozen)
    fake, state = apply.forward(
      self.network, variables, noise, text, text_mask, **how, method="sample"
    )
    judge = lambda image, text, mask: apply.forward(
      self.network, variables, image, text, mask, **how, method="judge"
    )[0]
    softplus = lambda x: Term(jax.nn.softplus(x).sum(), len(x))
    if player == "generator":
      return {"loss_of_samples": softplus(-judge(fake, text, text_mask))}, Aux({}, state)
    wrong = jnp.roll(text, 1, axis=0), jnp.roll(text_mask, 1, axis=0)
    fake = jax.lax.stop_gradient(fake)
    terms = {
      "real": softplus(-judge(batch["image"], text, text_mask)),
      "mismatched": softplus(judge(batch["image"], *wrong))._replace(weight=0.5),
      "fake": softplus(judge(fake, text, text_mask))._replace(weight=0.5),
    }
    return terms, Aux({}, state)

  def accumulates(self):
    return "batch statistics are of the part"

  def sample_inputs(self):
    return text_inputs(self.text_length)

  def sample_images(self, v, inputs, seeds, sampler):
    noise = jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), (self.noise_dim,)))(seeds)
    noise = noise * sampler.truncation
    return apply.infer(self.network, v, noise, inputs["text"], inputs["text_mask"], method="sample")
