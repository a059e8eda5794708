"""The LSTM against torch's."""

import pathlib

import jax
import numpy as np
from einops import rearrange
from safetensors import numpy as safetensors

from vlx.models.layers.recurrent import LSTM, LSTMState


def test_lstm_is_torchs():
  recorded = safetensors.load_file(pathlib.Path(__file__).parent / "lstm.safetensors")
  part = lambda name: recorded[f"lstm/{name}"]
  transposed = lambda name: rearrange(part(f"weights/{name}_l0"), "gates inputs -> inputs gates")
  params = {
    "input": {
      "kernel": transposed("weight_ih"),
      "bias": part("weights/bias_ih_l0") + part("weights/bias_hh_l0"),
    },
    "recurrent": {"kernel": transposed("weight_hh")},
  }
  state = LSTMState(part("inputs/hidden"), part("inputs/cell"))
  hidden, last = jax.jit(LSTM(features=5).apply)({"params": params}, part("inputs/x"), state)
  np.testing.assert_allclose(hidden, part("outputs/hidden"), atol=1e-6)
  np.testing.assert_allclose(last.hidden, part("outputs/last_hidden"), atol=1e-6)
  np.testing.assert_allclose(last.cell, part("outputs/last_cell"), atol=1e-6)
