"""An ensemble of captioners.

Show and Tell (Vinyals et al., 2015) gains some BLEU points by one (§4.3.1) and does not say how it
is put together. Here: beam search over the mean of several models' probabilities of the next word,
each given the image and the words so far. The members are parts: finished runs; a run of no steps
gathers and evaluates them (configs/show_and_tell.py:ensemble).
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlx.core import system as systems
from vlx.core.system import Aux
from vlx.losses.sequence import cross_entropy
from vlx.models.captioning.captioner import BeamSearched, SaysWords


def log_mean(
  logits: Sequence[Float[Array, "*batch vocabulary"]],
) -> Float[Array, "*batch vocabulary"]:
  """The log of the mean of the probabilities that each of several logits gives."""
  log_probs = jnp.stack([jax.nn.log_softmax(x) for x in logits])
  return jax.nn.logsumexp(log_probs, axis=0) - jnp.log(len(logits))


@dataclasses.dataclass(frozen=True)
class Ensemble(BeamSearched):
  """The system, one member or more; a member can be an ensemble and counts once."""

  member_1: SaysWords
  member_2: SaysWords | None = None
  member_3: SaysWords | None = None
  member_4: SaysWords | None = None
  member_5: SaysWords | None = None
  member_6: SaysWords | None = None
  member_7: SaysWords | None = None
  member_8: SaysWords | None = None

  def __post_init__(self):
    first = self.member_1
    for name, member in systems.parts(self).items():
      for what, one, other in (
        ("inputs", first.inputs(), member.inputs()),
        *((w, getattr(first, w), getattr(member, w)) for w in ("vocab_size", "start_id", "end_id")),
      ):
        if one != other:
          raise ValueError(
            f"members of an ensemble have the same {what}: {one} of member_1, {other} of {name}"
          )

  @property
  def vocab_size(self) -> int:
    return self.member_1.vocab_size

  @property
  def start_id(self) -> int:
    return self.member_1.start_id

  @property
  def end_id(self) -> int:
    return self.member_1.end_id

  def inputs(self):
    return self.member_1.inputs()

  def init(self, rng):
    del rng  # nothing of its own
    return {"params": {}, "state": {}}

  def decoder(self, variables, image, beam_size):
    steps, states = zip(
      *(
        member.decoder(systems.part(variables, name), image, beam_size)
        for name, member in systems.parts(self).items()
      )
    )

    def step(states, tokens):
      logits, states = zip(*(one(state, tokens) for one, state in zip(steps, states)))
      return log_mean(logits), states

    return step, states

  def word_logits(self, variables, image, text):
    return log_mean(
      [
        member.word_logits(systems.part(variables, name), image, text)
        for name, member in systems.parts(self).items()
      ]
    )

  def loss(self, variables, batch, rng, *, step, train, frozen):
    """−log of the mean probability of a word, for evaluation: members are as in inference."""
    del rng, step, train, frozen
    logits = self.word_logits(variables, batch["image"], batch["text"])
    words = cross_entropy(logits, batch["text"][:, 1:], batch["text_mask"][:, 1:])
    return {"nats_per_token": words}, Aux({}, variables["state"])

  def accumulates(self):
    return ""
