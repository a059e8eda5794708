"""Show and Tell.

Vinyals et al., "Show and Tell: A Neural Image Caption Generator", 2015. Here: a vision tower, an
LSTM that sees its features once, as the input at t = -1 (eq. 10-12), the likelihood of the words
with the stop word (eq. 13), decoding by beam search (§3.1).

What the paper leaves open follows the authors' released code (tensorflow/models, im2txt): the loss
is the mean over the words of a batch (which its learning rate of 2 goes with), all that is new is
drawn from U(-0.08, 0.08), the forget gate starts open, dropout is on inputs and outputs of the
LSTM.

Departure: o ⊙ tanh(c), as in that code; eq. 8 has no tanh, which is `output_tanh=False`. Fields for
the paper's ablations: `image_input="every"` gives the image beside each word (§3.1 found that
worse), and `init` of a config can start `word_embedding` at vectors trained elsewhere (§4.3.2: no gain).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import repeat
from jaxtyping import Array, Float, Int

from vlx.core.system import Aux
from vlx.losses.sequence import cross_entropy
from vlx.models.captioning.captioner import Captioner, Encoder, encode
from vlx.models.layers import apply
from vlx.models.layers.linear import flat_dot_general
from vlx.models.layers.recurrent import LSTM, LSTMState


class ShowAndTellNetwork(nn.Module):
  encoder: Encoder
  vocab_size: int
  embed_dim: int
  hidden_dim: int
  image_input: str
  output_tanh: bool
  dropout: float
  init_range: float

  def setup(self):
    def uniform(rng, shape, dtype=jnp.float32):
      return jax.random.uniform(rng, shape, dtype, -self.init_range, self.init_range)

    self.image_embedding = nn.Dense(self.embed_dim, kernel_init=uniform)
    self.word_embedding = nn.Embed(self.vocab_size, self.embed_dim, embedding_init=uniform)
    self.lstm = LSTM(
      self.hidden_dim,
      self.output_tanh,
      forget_bias=1.0,
      kernel_init=uniform,
      recurrent_init=uniform,
    )
    self.head = nn.Dense(self.vocab_size, kernel_init=uniform, dot_general=flat_dot_general)
    self.drop = nn.Dropout(self.dropout)

  def _image(self, image, train):
    return self.image_embedding(encode(self.encoder, image, train=train)[0])

  def _inputs(self, image, words):
    """The LSTM's inputs: the words, or each beside the image."""
    if self.image_input == "first":
      return words
    return jnp.concatenate([words, jnp.broadcast_to(image[:, None], words.shape)], axis=-1)

  def logits(
    self,
    image: Float[Array, "batch height width 3"],
    text: Int[Array, "batch length"],
    *,
    train: bool = False,
  ) -> Float[Array, "batch next vocabulary"]:
    """Logits of the word after each of text[:, :-1]."""
    image, words = self._image(image, train), self.word_embedding(text[:, :-1])
    inputs = self._inputs(image, words)
    if self.image_input == "first":
      inputs = jnp.concatenate([image[:, None], inputs], axis=1)
    start = LSTMState.zeros(len(text), self.hidden_dim)
    hidden, _ = self.lstm(self.drop(inputs, deterministic=not train), start)
    if self.image_input == "first":
      hidden = hidden[:, 1:]  # nothing is said at t = -1
    return self.head(self.drop(hidden, deterministic=not train))

  __call__ = logits

  def start(
    self, image: Float[Array, "batch height width 3"]
  ) -> tuple[Float[Array, "batch features"], LSTMState]:
    """(the embedded image, the state that has seen it where it is seen once)."""
    image = self._image(image, False)
    state = LSTMState.zeros(len(image), self.hidden_dim)
    return image, self.lstm.step(
      state, self.lstm.project(image)
    ) if self.image_input == "first" else state

  def next(
    self,
    image: Float[Array, "batch features"],
    state: LSTMState,
    tokens: Int[Array, " rows"],
    beam_size: int,
  ) -> tuple[Float[Array, "rows vocabulary"], LSTMState]:
    """(logits of the next word, state), `beam_size` rows for each image."""
    images = repeat(image, "b d -> (b k) d", k=beam_size)
    words = self._inputs(images, self.word_embedding(tokens)[:, None])[:, 0]
    state = self.lstm.step(state, self.lstm.project(words))
    return self.head(state.hidden), state


@dataclasses.dataclass(frozen=True)
class ShowAndTell(Captioner):
  """The system. Batches hold `image`, `text` (start, words, end) and `text_mask`."""

  encoder: Encoder
  vocab_size: int
  embed_dim: int = 512  # §4.3.2
  hidden_dim: int = 512
  image_input: str = "first"  # or "every"
  output_tanh: bool = True
  dropout: float = 0.3
  init_range: float = 0.08
  start_id: int = 0
  end_id: int = 1
  text_length: int = 32  # tokens of the longest caption, start and end among them

  def __post_init__(self):
    if self.image_input not in ("first", "every"):
      raise ValueError(f"image_input is 'first' or 'every', not {self.image_input!r}")

  @property
  def network(self) -> ShowAndTellNetwork:
    return ShowAndTellNetwork(
      encoder=self.encoder,
      vocab_size=self.vocab_size,
      embed_dim=self.embed_dim,
      hidden_dim=self.hidden_dim,
      image_input=self.image_input,
      output_tanh=self.output_tanh,
      dropout=self.dropout,
      init_range=self.init_range,
    )

  def loss(self, variables, batch, rng, *, step, train, frozen):
    """−log p of a word, the mean over the words of the batch, in nats; `step` is not used."""
    del step
    logits, state = apply.forward(
      self.network, variables, batch["image"], batch["text"], rng=rng, train=train, frozen=frozen
    )
    words = cross_entropy(logits, batch["text"][:, 1:], batch["text_mask"][:, 1:])
    return {"nats_per_token": words}, Aux({}, state)

  def accumulates(self):
    return self._batch_statistics()
