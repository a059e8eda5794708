"""The long short-term memory (Hochreiter & Schmidhuber, 1997; with forget gate, Gers et al., 2000).

  i, f, g, o = σ, σ, tanh, σ of x W + h U + b
  c ← f ⊙ c + i ⊙ g
  h ← o ⊙ tanh(c)

Gates stand in torch's order; of torch's two biases one is redundant, and here is their sum.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlx.models.layers.linear import flat_dot_general

Initializer = nn.initializers.Initializer


class LSTMState(NamedTuple):
  hidden: Float[Array, "batch features"]
  cell: Float[Array, "batch features"]

  @classmethod
  def zeros(cls, batch: int, features: int) -> "LSTMState":
    return cls(*(jnp.zeros((batch, features)) for _ in range(2)))


def per_gate(init: Initializer) -> Initializer:
  """Draws each gate's matrix by itself: an orthogonal one is then orthogonal gate by gate."""

  def draw(rng, shape, dtype=jnp.float32):
    gates = [init(key, (shape[0], shape[1] // 4), dtype) for key in jax.random.split(rng, 4)]
    return jnp.concatenate(gates, axis=1)

  return draw


class LSTM(nn.Module):
  """A layer that can be taken step by step.

  What the inputs add to the gates does not wait for the state, so `project` does it for all steps
  in one product, and only `step` stands in the loop.
  """

  features: int
  output_tanh: bool = True  # without: h ← o ⊙ c
  forget_bias: float = 0.0  # what the forget gate's bias starts at
  kernel_init: Initializer = nn.initializers.lecun_normal()
  recurrent_init: Initializer = per_gate(nn.initializers.orthogonal())

  def setup(self):
    self.input = nn.Dense(
      4 * self.features,
      kernel_init=self.kernel_init,
      bias_init=self._bias_init,
      dot_general=flat_dot_general,
    )
    self.recurrent = nn.Dense(4 * self.features, use_bias=False, kernel_init=self.recurrent_init)

  def _bias_init(self, rng, shape, dtype=jnp.float32):
    del rng
    forget = slice(self.features, 2 * self.features)
    return jnp.zeros(shape, dtype).at[forget].set(self.forget_bias)

  def project(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch gates"]:
    """The inputs' share of the four gates, with the bias."""
    return self.input(x)

  def step(self, state: LSTMState, projected: Float[Array, "batch gates"]) -> LSTMState:
    """The next state, of what inputs (and anything else) add to the gates."""
    gates = projected + self.recurrent(state.hidden)
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * state.cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return LSTMState(jax.nn.sigmoid(o) * (jnp.tanh(cell) if self.output_tanh else cell), cell)

  def __call__(
    self, x: Float[Array, "batch length inputs"], state: LSTMState
  ) -> tuple[Float[Array, "batch length features"], LSTMState]:
    """Hidden states after each input, and the last state."""

    def step(lstm, state, projected):
      state = lstm.step(state, projected)
      return state, state.hidden

    state, hidden = scan_time(step)(self, state, self.project(x))
    return hidden, state


# step(module, carry, inputs) → (carry, outputs), over axis 1 of all inputs; randomness comes as an
# input.
scan_time = functools.partial(
  nn.scan, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1
)
