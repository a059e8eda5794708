"""The authors' Show, Attend and Tell against a restatement of capgen.py's formulas in NumPy."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import contract
from vlx import pretrained
from vlx.core import config as configs
from vlx.core.config import ConfigDict
from vlx.core.errors import UserError
from vlx.core.system import flatten
from vlx.inference.decoding import Search, beam_search
from vlx.models.layers import apply
from vlx.train import initialize

WORDS, EMBEDDING, HIDDEN, FEATURES, PLACES = 11, 6, 7, 16, 4
OPTIONS = dict(
  attn_type="deterministic",
  ctx2out=True,
  ctx_dim=FEATURES,
  lstm_encoder=False,
  maxlen=20,
  n_layers_att=2,
  n_layers_init=2,
  n_layers_lstm=1,
  n_layers_out=1,
  prev2out=True,
  selector=True,
  use_dropout=True,
  use_dropout_lstm=False,
)


def parameters(options):
  """As `init_params` of capgen.py names and shapes them."""
  dense = {
    "ff_state": (FEATURES, HIDDEN),
    "ff_memory": (FEATURES, HIDDEN),
    "ff_logit_lstm": (HIDDEN, EMBEDDING),
    "ff_logit_ctx": (FEATURES, EMBEDDING),
    "ff_logit": (EMBEDDING, WORDS),
  }
  dense |= {f"ff_init_{i}": (FEATURES,) * 2 for i in range(1, options["n_layers_init"])}
  shapes = {
    "Wemb": (WORDS, EMBEDDING),
    "decoder_W": (EMBEDDING, 4 * HIDDEN),
    "decoder_U": (HIDDEN, 4 * HIDDEN),
    "decoder_b": (4 * HIDDEN,),
    "decoder_Wc": (FEATURES, 4 * HIDDEN),
    "decoder_Wc_att": (FEATURES, FEATURES),
    "decoder_Wd_att": (HIDDEN, FEATURES),
    "decoder_b_att": (FEATURES,),
    "decoder_U_att": (FEATURES, 1),
    "decoder_c_tt": (1,),
    "history_errs": (3, 2),
  }
  for name, shape in dense.items():
    shapes |= {f"{name}_W": shape, f"{name}_b": shape[1:]}
  for i in range(1, options["n_layers_att"]):
    shapes |= {f"decoder_W_att_{i}": (FEATURES,) * 2, f"decoder_b_att_{i}": (FEATURES,)}
  if options["selector"]:
    shapes |= {"decoder_W_sel": (HIDDEN, 1), "decoder_b_sel": ()}
  rng = np.random.default_rng(0)
  return {n: np.float32(rng.normal(0, 0.5, shape)) for n, shape in shapes.items()}


def said(p, options, features, text):
  """Logits of the words of one caption, not training, and where attention was at each.

  `features` [places, FEATURES], `text` ids without a start.
  """
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  half = 0.5 if options["use_dropout"] else 1.0  # what dropout is when it is not training
  dense = lambda x, name: x @ p[f"{name}_W"] + p[f"{name}_b"]
  keys = features @ p["decoder_Wc_att"] + p["decoder_b_att"]
  for i in range(1, options["n_layers_att"]):
    keys = np.tanh(keys @ p[f"decoder_W_att_{i}"] + p[f"decoder_b_att_{i}"])
  mean = features.mean(axis=0)
  for i in range(1, options["n_layers_init"]):
    mean = half * np.maximum(dense(mean, f"ff_init_{i}"), 0)
  h, c = np.tanh(dense(mean, "ff_state")), np.tanh(dense(mean, "ff_memory"))
  logits, attention = [], []
  for previous in [None, *text[:-1]]:
    word = np.zeros(EMBEDDING) if previous is None else p["Wemb"][previous]
    scores = np.tanh(keys + h @ p["decoder_Wd_att"]) @ p["decoder_U_att"][:, 0] + p["decoder_c_tt"]
    weights = np.exp(scores) / np.exp(scores).sum()
    context = weights @ features
    if options["selector"]:
      context = sigmoid(h @ p["decoder_W_sel"][:, 0] + p["decoder_b_sel"]) * context
    gates = h @ p["decoder_U"] + word @ p["decoder_W"] + p["decoder_b"] + context @ p["decoder_Wc"]
    i, f, o, g = np.split(gates, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    x = dense(half * h, "ff_logit_lstm") + word + dense(context, "ff_logit_ctx")
    logits.append(dense(half * np.tanh(x), "ff_logit"))
    attention.append(weights)
  return np.array(logits), np.array(attention)


def write(folder, options, p=None):
  np.savez(folder / "model.npz", **(parameters(options) if p is None else p))
  # Python 2's way: text, byte strings.
  (folder / "model.npz.pkl").write_bytes(pickle.dumps(options, protocol=0))
  return folder / "model.npz"


def loaded(path):
  """(system, variables) of the decoder alone."""
  found = pretrained.open_checkpoint(path)
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = {
    n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device) for n, x in found.shapes.items()
  }
  arrays = found.read(wanted)
  tree = {}
  for name, x in arrays.items():
    *path, last = name.split("/")[1:]
    node = tree
    for key in path:
      node = node.setdefault(key, {})
    node[last] = x
  return found.system, {"params": tree, "state": {}}


CASES = {
  "released": {},
  "no dropout": dict(use_dropout=False),
  "plain": dict(selector=False, n_layers_att=1, n_layers_init=1),
  "deep": dict(n_layers_att=3, n_layers_init=3),
  "hard": dict(attn_type="stochastic"),
}


@pytest.mark.parametrize("case", CASES)
def test_it_says_what_the_authors_formulas_say(case, tmp_path):
  options = {**OPTIONS, **CASES[case]}
  p, rng = parameters(options), np.random.default_rng(1)
  system, variables = loaded(write(tmp_path, options))
  assert system.selection == ("hard" if case == "hard" else "soft")
  features = rng.normal(size=(2, PLACES, FEATURES)).astype(np.float32)
  text = np.array([[3, 9, 4, 2, 0], [10, 1, 5, 8, 0]])
  own = jnp.asarray(features.reshape(2, 2, 2, FEATURES))
  with_start = jnp.pad(jnp.asarray(text, jnp.int32), ((0, 0), (1, 0)))
  logits, trace = jax.jit(lambda v, *x: apply.infer(system.network, v, *x, method="decode"))(
    variables, own, with_start
  )
  for row in range(2):
    expected, attention = said(p, options, features[row], text[row])
    atol = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(logits[row], expected, rtol=0, atol=atol)
    np.testing.assert_allclose(trace.weights[row], attention, rtol=0, atol=1e-5)


def test_captions_begin_with_the_zero_word_and_end_with_id_0(tmp_path):
  """Greedily, word by word, by the same formulas."""
  p = parameters(OPTIONS)
  system, variables = loaded(write(tmp_path, OPTIONS, p))
  features = np.random.default_rng(2).normal(size=(PLACES, FEATURES)).astype(np.float32)
  expected = []
  while len(expected) < 8 and (not expected or expected[-1]):
    logits, _ = said(p, OPTIONS, features, [*expected, 0])
    expected.append(int(logits[-1].argmax()))
  infer = lambda *x, method: apply.infer(system.network, variables, *x, method=method)
  annotations, state = infer(jnp.asarray(features.reshape(1, 2, 2, FEATURES)), method="begin")
  step = lambda state, tokens: infer(annotations, state, tokens, 1, False, method="next")
  ids, _ = beam_search(step, state, 1, Search(1, 8), start_id=system.start_id, end_id=system.end_id)
  assert np.asarray(ids)[0, 0, : len(expected)].tolist() == expected


def test_a_run_starts_from_it_and_nothing_pretends_to_be_its_tower(tmp_path):
  path = write(tmp_path, OPTIONS)
  with pytest.raises(UserError, match="holds a decoder without its vision tower; start a run"):
    pretrained.load(path)
  system, decoder = loaded(path)
  shapes = flatten(contract.shapes(system))
  entry = dict(source=str(path), without=("encoder/.*", "baseline"))
  config = ConfigDict(dict(model=configs.section_of(system), init=(entry,)))
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device) for n, x in shapes.items()}
  found = initialize.variables(system, config, wanted, jax.random.key(0))
  assert found.keys() == shapes.keys()
  for name, x in flatten(decoder).items():
    np.testing.assert_array_equal(found[name], x, err_msg=name)


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(n_layers_lstm=2), "n_layers_lstm is 2; vlx supports 1 only"),
    (dict(prev2out=False), "prev2out is False"),
    (dict(use_dropout_lstm=True), "use_dropout_lstm is True"),
    (dict(attn_type="both"), "attn_type is 'both'"),
    (dict(n_layers_att=10**9), "n_layers_att is 1000000000, but the file has 2"),
    (dict(selector=False), "surplus: decoder_W_sel"),
    (dict(ctx_dim=8), "ctx_dim is 8"),
  ],
)
def test_options_that_do_not_fit_are_told(tmp_path, change, message):
  path = write(tmp_path, {**OPTIONS, **change}, parameters(OPTIONS))
  with pytest.raises(UserError, match=message):
    loaded(path)


def test_options_are_read_as_data(tmp_path):
  path = write(tmp_path, OPTIONS)
  beside = tmp_path / "model.npz.pkl"
  # As Python 2 writes a dict of byte strings.
  beside.write_bytes(
    b"(dp0\nS'use_dropout'\np1\nI01\nsS'attn_type'\nS'deterministic'\nsS'n_layers_att'\nI2\ns"
    b"S'n_layers_init'\nI2\nsS'ctx_dim'\nI16\nsS'selector'\nI01\ns."
  )
  assert loaded(path)[0].dropout == 0.5
  beside.write_bytes(b"cposix\nsystem\n(S'touch " + str(tmp_path / "trace").encode() + b"'\ntR.")
  with pytest.raises(UserError, match=r"posix\.system"):
    loaded(path)
  assert not (tmp_path / "trace").exists()
  beside.write_bytes(b"I1\n.")
  with pytest.raises(UserError, match="holds no options"):
    loaded(path)
  beside.unlink()
  with pytest.raises(UserError, match="needs its options"):
    loaded(path)
