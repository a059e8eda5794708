"""unCLIP's networks are diffusers' for Karlo."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.parity.recorded import Recorded, assert_parity, assert_returned, named_shapes
from vlx.core.system import names
from vlx.models.layers import apply
from vlx.pretrained import karlo, tables
from vlx.pretrained.tables import public_shapes


def prior_shapes(network, dim_tokens):
  """Of the network's variables, and of the state of its system."""
  shape = jax.ShapeDtypeStruct
  inputs = dict(
    x=shape((network.dim,), jnp.float32),
    t=shape((), jnp.float32),
    text=shape((network.dim,), jnp.float32),
    tokens=shape((network.text_length, dim_tokens), jnp.float32),
    mask=shape((network.text_length,), jnp.bool_),
  )
  made = jax.eval_shape(lambda rng: apply.init(network, rng, inputs, *inputs), jax.random.key(0))
  standard = {name: shape((network.dim,), jnp.float32) for name in ("mean", "deviation")}
  return {**made, "state": {"embeddings": standard}}


def test_the_prior():
  recorded = Recorded("unclip", "prior")
  network = karlo.prior(recorded.config)
  wanted = prior_shapes(network, network.dim)
  rows = karlo.prior_rows(network)
  found = tables.read(rows, wanted, recorded.shapes, recorded.weights.__getitem__)
  variables = jax.tree.map(found.__getitem__, names(wanted))
  x, t, text, tokens, mask = (
    jnp.asarray(recorded.inputs[name])
    for name in (
      "hidden_states", "timestep", "proj_embedding", "encoder_hidden_states", "attention_mask"
    )
  )  # fmt: skip
  mine = {"params": variables["params"], "state": {}}
  said = apply.infer(network, mine, x, t, text, tokens, mask.astype(bool))
  assert_parity(said, recorded.outputs["sample"])
  standard = variables["state"]["embeddings"]
  assert_parity(said * standard["deviation"] + standard["mean"], recorded.outputs["embedding"])
  assert_returned(rows, variables, recorded.weights)


def test_the_priors_size_is_the_published_one():
  network = karlo.prior({})
  wanted = prior_shapes(network, network.dim)
  shapes = public_shapes(karlo.prior_rows(network), wanted)
  assert shapes == named_shapes("karlo_prior")
  assert sum(np.prod(shape, dtype=int) for shape in shapes.values()) == 1_022_030_080
