"""Show, Attend and Tell.

Xu et al., "Show, Attend and Tell: Neural Image Caption Generation with Visual Attention", 2015.
Here: the annotations of a vision tower's map (§3.1.1), an LSTM that at each word attends to them
(§3.1.2), by the expectation ("soft", §4.2, with doubly stochastic regularisation and the gate β of
§4.2.1) or by one sampled location ("hard", §4.1, learned by REINFORCE), the deep output layer (eq.
7), and beam search.

Of the released code (kelvinxu/arctic-captions) where it differs from the paper, each a field: the
tanh in the output layer, further layers of the initial state and of the annotations, a zero in
place of the first word's embedding, the penalty's average, the reward of a caption as its mean per
word, one sample for a whole batch of whether to take the expectation. From that code alone: λ_r = 0.1
and λ_e = 0.002, which it does not divide by the batch as it does the likelihood (here all are means
over captions; configs/show_attend_tell.py:coco_hard says them times 64). Attention's output bias is
left out, for the softmax does not see it. `attention="bilinear"` scores by hᵀ W a.

Departure: batches are not of captions of one length (§4.3), which saved the time of padding: here
every batch has the same shape, and padding counts in no term.
"""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from vlx.core.system import Aux, Term
from vlx.losses.sequence import token_log_likelihood
from vlx.models.captioning.captioner import Captioner, Encoder, encode
from vlx.models.layers import apply
from vlx.models.layers.linear import flat_dot_general
from vlx.models.layers.recurrent import LSTM, LSTMState, per_gate, scan_time


class Annotations(NamedTuple):
  """The annotations of an image, the same at every word."""

  values: Float[Array, "batch places features"]
  keys: Float[Array, "batch places key_features"]


class Selection(NamedTuple):
  """How locations are sampled in training; where `sampled` is False the expectation is taken."""

  noise: Float[Array, "batch length places"]  # of Gumbel's distribution
  sampled: Bool[Array, " batch"]


class Trace(NamedTuple):
  """Attention at each word."""

  weights: Float[Array, "batch length places"]  # α
  log_choice: Float[Array, "batch length"]  # log α of the sampled location, 0 for the expectation
  entropy: Float[Array, "batch length"]  # of α


def norm_weight(rng, shape, dtype=jnp.float32):
  """The released code's: orthogonal where it is square, else normal of deviation 0.01."""
  init = nn.initializers
  return (init.orthogonal() if shape[0] == shape[1] else init.normal(0.01))(rng, shape, dtype)


@jax.checkpoint  # its tanh, places x features at each word, is cheaper to make again than to keep
def _additive_scores(keys, query, vector):
  return jnp.tanh(keys + query[..., None, :]) @ vector


class ShowAttendTellNetwork(nn.Module):
  encoder: Encoder
  vocab_size: int
  embed_dim: int
  hidden_dim: int
  attention_dim: int
  attention: str
  context_gate: bool
  annotation_layers: int
  init_layers: int
  deep_output_tanh: bool
  zero_start: bool
  dropout: float
  initialization: str
  start_id: int

  def setup(self):
    normal = nn.initializers.normal
    if self.initialization == "released":
      kernel_init, input_init = norm_weight, per_gate(norm_weight)
      key_init = score_init = normal(0.01)
    # as large going out as coming in: attention differs from cell to cell from the first step on
    else:
      kernel_init = input_init = key_init = nn.initializers.lecun_normal()
      score_init = normal(self.attention_dim**-0.5)
    dense = lambda width, kernel_init=kernel_init, **kwargs: nn.Dense(
      width, kernel_init=kernel_init, dot_general=flat_dot_general, **kwargs
    )
    self.word_embedding = nn.Embed(self.vocab_size, self.embed_dim, embedding_init=score_init)
    self.lstm = LSTM(self.hidden_dim, kernel_init=input_init)
    self.context_gates = dense(4 * self.hidden_dim, use_bias=False)
    self.init_hidden = [dense(self.attention_dim) for _ in range(self.init_layers - 1)]
    self.init_state, self.init_memory = dense(self.hidden_dim), dense(self.hidden_dim)
    if self.attention == "mlp":
      further = [dense(self.attention_dim) for _ in range(self.annotation_layers - 1)]
      self.annotation_keys = [dense(self.attention_dim, key_init), *further]
      self.query = dense(self.attention_dim, use_bias=False)
      self.score = self.param("score", score_init, (self.attention_dim,))
    else:
      self.annotation_keys = [dense(self.hidden_dim, key_init, use_bias=False)]
    if self.context_gate:
      self.gate = dense(1)
    self.output_hidden, self.output_context = dense(self.embed_dim), dense(self.embed_dim)
    self.head = dense(self.vocab_size)
    self.drop = nn.Dropout(self.dropout)

  def annotate(
    self, image: Float[Array, "batch height width 3"], *, train: bool = False
  ) -> Float[Array, "batch rows columns features"]:
    return encode(self.encoder, image, train=train)[1]

  def begin(
    self, features: Float[Array, "batch rows columns features"], *, train: bool = False
  ) -> tuple[Annotations, LSTMState]:
    """Annotations, and the state before the first word, from their mean."""
    values = rearrange(features, "b h w d -> b (h w) d")
    keys = values
    for i, layer in enumerate(self.annotation_keys):
      keys = jnp.tanh(layer(keys)) if i else layer(keys)
    x = values.mean(axis=1)
    for layer in self.init_hidden:
      x = self.drop(jax.nn.relu(layer(x)), deterministic=not train)
    state = LSTMState(jnp.tanh(self.init_state(x)), jnp.tanh(self.init_memory(x)))
    return Annotations(values, keys), state

  def words(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch features"]:
    """E y, zeros for the start token where `zero_start`."""
    embedded = self.word_embedding(tokens)
    return (
      jnp.where((tokens == self.start_id)[..., None], 0, embedded) if self.zero_start else embedded
    )

  def scores(
    self, keys: Float[Array, "*batch places key_features"], hidden: Float[Array, "*batch features"]
  ) -> Float[Array, "*batch places"]:
    """e of each annotation."""
    if self.attention == "mlp":
      return _additive_scores(keys, self.query(hidden), self.score)
    return (keys @ hidden[..., None])[..., 0]

  def beam_scores(
    self,
    keys: Float[Array, "batch places key_features"],
    hidden: Float[Array, "batch beam features"],
  ) -> Float[Array, "batch beam places"]:
    """`scores` of the same places for several sequences."""
    if self.attention == "mlp":
      # One beam after another: the tanh of all at once, places x features each, is too much for a
      # CPU's cache.
      query = rearrange(self.query(hidden), "b k d -> k b d")
      scores = jax.lax.map(lambda q: _additive_scores(keys, q, self.score), query)
      return rearrange(scores, "k b n -> b k n")
    return jnp.einsum("bnd,bkd->bkn", keys, hidden)

  def gated(
    self, context: Float[Array, "batch features"], hidden: Float[Array, "batch hidden"]
  ) -> Float[Array, "batch features"]:
    """β ẑ."""
    return jax.nn.sigmoid(self.gate(hidden)) * context if self.context_gate else context

  def output(
    self,
    hidden: Float[Array, "*batch hidden"],
    words: Float[Array, "*batch embedding"],
    context: Float[Array, "*batch features"],
    *,
    train: bool = False,
  ) -> Float[Array, "*batch vocabulary"]:
    """Logits, L_o (E y + L_h h + L_z ẑ)."""
    drop = lambda x: self.drop(x, deterministic=not train)
    x = self.output_hidden(drop(hidden)) + words + self.output_context(context)
    return self.head(drop(jnp.tanh(x) if self.deep_output_tanh else x))

  def decode(
    self,
    features: Float[Array, "batch rows columns features"],
    text: Int[Array, "batch length"],
    selection: Selection | None = None,
    *,
    train: bool = False,
  ) -> tuple[Float[Array, "batch next vocabulary"], Trace]:
    """Logits of the word after each of text[:, :-1], and where attention was at it."""
    annotations, state = self.begin(features, train=train)
    words = self.words(text[:, :-1])
    noise, sampled = selection or (None, None)

    def step(network, state, inputs):
      projected, noise = inputs
      log_weights = jax.nn.log_softmax(network.scores(annotations.keys, state.hidden))
      weights = used = jnp.exp(log_weights)
      log_choice = jnp.zeros(len(weights))
      if noise is not None:
        choice = jax.nn.one_hot(jnp.argmax(log_weights + noise, axis=-1), weights.shape[1])
        used = jnp.where(sampled[:, None], choice, weights)
        log_choice = jnp.where(sampled, (choice * log_weights).sum(axis=1), 0.0)
      context = jnp.einsum("bn,bnd->bd", used, annotations.values)
      context = network.gated(context, state.hidden)
      state = network.lstm.step(state, projected + network.context_gates(context))
      entropy = -(weights * log_weights).sum(axis=1)
      return state, (state.hidden, context, Trace(weights, log_choice, entropy))

    inputs = (self.lstm.project(words), noise)
    _, (hidden, context, trace) = scan_time(step)(self, state, inputs)
    return self.output(hidden, words, context, train=train), trace

  def __call__(
    self,
    image: Float[Array, "batch height width 3"],
    text: Int[Array, "batch length"],
    selection: Selection | None = None,
    *,
    train: bool = False,
  ) -> tuple[Float[Array, "batch next vocabulary"], Trace]:
    return self.decode(self.annotate(image, train=train), text, selection, train=train)

  def logits(
    self, image: Float[Array, "batch height width 3"], text: Int[Array, "batch length"]
  ) -> Float[Array, "batch next vocabulary"]:
    return self(image, text)[0]

  def start(self, image: Float[Array, "batch height width 3"]) -> tuple[Annotations, LSTMState]:
    return self.begin(self.annotate(image))

  def next(
    self,
    annotations: Annotations,
    state: LSTMState,
    tokens: Int[Array, " rows"],
    beam_size: int,
    argmax: bool,
  ) -> tuple[Float[Array, "rows vocabulary"], LSTMState]:
    """(logits of the next word, state), `beam_size` rows for each image, whose annotations they share."""
    split = lambda x: rearrange(x, "(b k) ... -> b k ...", k=beam_size)
    weights = jax.nn.softmax(self.beam_scores(annotations.keys, split(state.hidden)))
    if argmax:
      weights = jax.nn.one_hot(weights.argmax(axis=-1), weights.shape[-1])
    context = rearrange(weights @ annotations.values, "b k d -> (b k) d")
    context = self.gated(context, state.hidden)
    words = self.words(tokens)
    state = self.lstm.step(state, self.lstm.project(words) + self.context_gates(context))
    return self.output(state.hidden, words, context), state


@dataclasses.dataclass(frozen=True)
class ShowAttendTell(Captioner):
  """The system. Batches hold `image`, `text` (start, words, end) and `text_mask`."""

  encoder: Encoder
  vocab_size: int
  embed_dim: int = 512
  hidden_dim: int = 512
  attention_dim: int = 512
  attention: str = "mlp"  # or "bilinear"
  selection: str = "soft"  # or "hard"
  context_gate: bool = True
  annotation_layers: int = 1
  init_layers: int = 1
  deep_output_tanh: bool = False
  zero_start: bool = False
  dropout: float = 0.5
  doubly_stochastic: float = 1.0  # λ of Σ_i (1 − Σ_t α_ti)² (eq. 14)
  penalty: str = "caption"  # mean over captions; "released": sum over them, mean over places
  reward_scale: float = 0.1  # λ_r
  entropy_weight: float = 0.002  # λ_e
  baseline_decay: float = 0.9  # §4.1
  reward: str = "sum"  # log p of a caption, or its "mean" per word
  expected_share: float = 0.5  # how often the expectation stands in for a sample
  expected_for: str = "image"  # or "batch": which of them share that decision
  initialization: str = "released"  # or "lecun": kernels by their inputs
  decode_attention: str = "expected"  # or "argmax": the likeliest cell alone
  start_id: int = 0
  end_id: int = 1
  text_length: int = 32  # tokens of the longest caption, start and end among them

  def __post_init__(self):
    for name, valid in CHOICES.items():
      if getattr(self, name) not in valid:
        raise ValueError(f"{name} is {valid[0]!r} or {valid[1]!r}, not {getattr(self, name)!r}")

  @property
  def network(self) -> ShowAttendTellNetwork:
    names = (f.name for f in dataclasses.fields(ShowAttendTellNetwork) if f.init)
    return ShowAttendTellNetwork(
      **{n: getattr(self, n) for n in names if n not in ("parent", "name")}
    )

  def init(self, rng):
    variables = super().init(rng)
    return {**variables, "state": {**variables["state"], "reward": {"baseline": jnp.zeros(())}}}

  def loss(self, variables, batch, rng, *, step, train, frozen):
    """The soft or the hard objective, the mean over captions; `step` is not used."""
    del step
    image, text, mask = batch["image"], batch["text"], batch["text_mask"][:, 1:]
    keys, own = jax.random.split(rng), self._network_variables(variables)
    call = functools.partial(
      apply.forward, self.network, own, rng=keys[1], train=train, frozen=frozen
    )
    features, updated = call(image, method="annotate")
    hard = self.selection == "hard"
    selection = self._select(keys[0], features, text) if hard and train else None
    (logits, trace), _ = call(features, text, selection, method="decode")
    log_likelihood = token_log_likelihood(logits, text[:, 1:], mask)
    terms = {
      "caption": Term(-log_likelihood.sum(), len(text)),
      "doubly_stochastic": self._penalty(trace.weights, mask),
    }
    reward = variables["state"]["reward"]
    if selection:
      terms["reinforce"], baseline = self._reinforce(
        log_likelihood, trace, mask, reward["baseline"]
      )
      reward = {"baseline": baseline}
    metrics = {"nats_per_token": -log_likelihood.sum() / mask.sum()}
    return terms, Aux(metrics, {**updated, "reward": reward})

  def accumulates(self):
    if self.selection == "hard":
      return "the reward's baseline moves once for each part"
    if self.doubly_stochastic and self.penalty == "released":
      return "the released penalty is no mean over captions"
    return self._batch_statistics()

  def _select(self, rng, features, text) -> Selection:
    noise_key, share_key = jax.random.split(rng)
    batch, places, length = len(text), features.shape[1] * features.shape[2], text.shape[1] - 1
    count = batch if self.expected_for == "image" else 1
    sampled = jax.random.uniform(share_key, (count,)) >= self.expected_share
    return Selection(
      jax.random.gumbel(noise_key, (batch, length, places)), jnp.broadcast_to(sampled, (batch,))
    )

  def _penalty(self, weights, mask):
    """The term of Σ_i (1 − Σ_t α_ti)²: every cell is to be looked at about once in a caption."""
    total = jnp.where(mask[..., None], weights, 0.0).sum(axis=1)
    squares = (1 - total) ** 2
    captions, places = squares.shape
    return Term(
      squares.sum(), captions if self.penalty == "caption" else places, self.doubly_stochastic
    )

  def _reinforce(self, log_likelihood, trace, mask, baseline):
    """(the term that gives §4.1's gradient with respect to the choice of places, new baseline)."""
    reward = log_likelihood.sum(axis=1)
    if self.reward == "mean":
      reward = reward / mask.sum(axis=1)
    reward = jax.lax.stop_gradient(reward)
    log_choice = jnp.where(mask, trace.log_choice, 0.0).sum(axis=1)
    entropy = jnp.where(mask, trace.entropy, 0.0).sum(axis=1)
    objective = self.reward_scale * (reward - baseline) * log_choice + self.entropy_weight * entropy
    decay = self.baseline_decay
    return Term(-objective.sum(), len(objective)), decay * baseline + (1 - decay) * reward.mean()

  def decoder(self, variables, image, beam_size):
    annotations, state = self._infer(variables, image, method="start")
    argmax = self.decode_attention == "argmax"

    def step(state, tokens):
      return self._infer(variables, annotations, state, tokens, beam_size, argmax, method="next")

    return step, state

  def attention_maps(self, variables, inputs) -> Float[Array, "batch length rows columns"]:
    """α where each token of `text` was said of `image`; zeros for the start token, which is not
    said, and padding.
    """
    image, text, text_mask = (inputs[name] for name in ("image", "text", "text_mask"))
    features = self._infer(variables, image, method="annotate")
    _, trace = self._infer(variables, features, text, method="decode")
    weights = jnp.where(text_mask[:, 1:, None], trace.weights, 0.0)
    weights = jnp.pad(weights, ((0, 0), (1, 0), (0, 0)))
    return rearrange(weights, "b t (h w) -> b t h w", h=features.shape[1])


CHOICES = {
  "attention": ("mlp", "bilinear"),
  "selection": ("soft", "hard"),
  "penalty": ("caption", "released"),
  "reward": ("sum", "mean"),
  "expected_for": ("image", "batch"),
  "decode_attention": ("expected", "argmax"),
  "initialization": ("released", "lecun"),
}
