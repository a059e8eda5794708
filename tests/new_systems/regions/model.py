"""A single-stream BERT over words and region features with four objectives (UNITER; Chen et al.,
2020, §3.2): a toy.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vlx.core.system import Aux, Term, text_inputs
from vlx.losses.sequence import cross_entropy
from vlx.models.layers import apply
from vlx.models.layers.transformer import Transformer
from vlx.models.pretraining.bert import mask_words
from vlx.ops.masks import KeyPadding


class Network(nn.Module):
  """Words and regions in one sequence → logits of words, of the regions' classes, their
  features, of matching.
  """

  vocab_size: int
  num_classes: int
  region_dim: int
  width: int
  text_length: int

  @nn.compact
  def __call__(self, text, text_mask, regions, boxes, region_mask, *, train: bool = False):
    words = nn.Embed(self.vocab_size, self.width, name="words")
    place = self.param("position", nn.initializers.normal(0.02), (self.text_length, self.width))
    x = words(text) + place[: text.shape[1]]
    y = nn.Dense(self.width, name="region")(regions) + nn.Dense(self.width, name="box")(boxes)
    x = nn.LayerNorm(name="norm")(jnp.concatenate([x, y], axis=1))
    mask = KeyPadding(jnp.concatenate([text_mask, region_mask], axis=1))
    stack = Transformer(
      depth=2,
      num_heads=2,
      mlp_dim=2 * self.width,
      initialization="bert",
      norm="post",
      dropout=0.1,
      name="encoder",
    )
    x = stack(x, mask, train=train)
    y = x[:, text.shape[1] :]
    return (
      words.attend(x[:, : text.shape[1]]),
      nn.Dense(self.num_classes, name="classes")(y),
      nn.Dense(self.region_dim, name="features")(y),
      nn.Dense(1, name="match")(x[:, 0])[:, 0],
    )


@dataclasses.dataclass(frozen=True)
class RegionBERT:
  """Masked words, classes and features of masked regions, and whether text and regions fit."""

  vocab_size: int
  num_classes: int
  text_length: int
  num_regions: int
  region_dim: int
  width: int = 16
  mask_id: int = 2  # the unknown word of the vocabulary

  @property
  def network(self):
    return Network(self.vocab_size, self.num_classes, self.region_dim, self.width, self.text_length)

  def inputs(self):
    shape, r = jax.ShapeDtypeStruct, self.num_regions
    return {
      **text_inputs(self.text_length),
      "regions": shape((r, self.region_dim), jnp.float32),
      "boxes": shape((r, 4), jnp.float32),
      "region_mask": shape((r,), jnp.bool_),
      "box_labels": shape((r,), jnp.int32),
    }

  def init(self, rng):
    return apply.init(
      self.network, rng, self.inputs(), "text", "text_mask", "regions", "boxes", "region_mask"
    )

  def loss(self, variables, batch, rng, *, step, train, frozen):
    keys = jax.random.split(rng, 4)
    text, mask, regions, present = (
      batch[n] for n in ("text", "text_mask", "regions", "region_mask")
    )
    hidden, chosen = mask_words(
      keys[0], text, mask & (text > 1), vocab_size=self.vocab_size, mask_id=self.mask_id
    )
    unseen = present & jax.random.bernoulli(keys[1], 0.15, present.shape)
    shown = jnp.where(unseen[..., None], 0, regions)
    # Each row with its neighbour's regions half of the time.
    other = jax.random.bernoulli(keys[2], 0.5, (len(text),))
    swap = lambda x: jnp.where(other.reshape(-1, *[1] * (x.ndim - 1)), jnp.roll(x, 1, axis=0), x)
    forward = lambda *inputs: apply.forward(
      self.network, variables, *inputs, rng=keys[3], train=train, frozen=frozen
    )[0]
    words, classes, features, _ = forward(hidden, mask, shown, batch["boxes"], present)
    *_, match = forward(text, mask, swap(regions), swap(batch["boxes"]), swap(present))
    squares = ((features - regions) ** 2).mean(-1)
    sigmoid = jax.nn.softplus(match) - match * ~other
    terms = {
      "words": cross_entropy(words, text, chosen),
      "classes": cross_entropy(classes, batch["box_labels"], unseen),
      "features": Term(jnp.sum(squares, where=unseen), unseen.sum()),
      "match": Term(sigmoid.sum(), len(text)),
    }
    return terms, Aux({"match_accuracy": ((match > 0) == ~other).mean()}, variables["state"])

  def accumulates(self):
    return "who does not match is another row of the batch"

  def pair_scores(self, v, batch):
    inputs = (batch[n] for n in ("text", "text_mask", "regions", "boxes", "region_mask"))
    return apply.infer(self.network, v, *inputs)[3]
