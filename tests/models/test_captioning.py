"""Show and Tell; Show, Attend and Tell: likelihoods, causality, attention, REINFORCE, decoding."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests import contract
from vlx.core.config import build, build_system, load_config
from vlx.inference.decoding import Search
from vlx.losses.sequence import token_log_likelihood
from vlx.models.captioning.show_and_tell import ShowAndTell
from vlx.models.captioning.show_attend_tell import Selection, ShowAttendTell, Trace

VOCABULARY, LENGTH = 9, 6
CNN = dict(convolutions=(1, 1), width=4)  # 2 x 2 places of 8 features for images of 4 x 4
SECTION = dict(encoder=CNN, vocab_size=VOCABULARY, embed_dim=6, hidden_dim=5, dropout=0.0)
ATTEND = dict(SECTION, attention_dim=7)


def batch(seed=0, rows=4, length=LENGTH):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(3, length + 1, size=rows)
  text = rng.integers(2, VOCABULARY, (rows, length))
  text[:, 0], text[np.arange(rows), lengths - 1] = 0, 1
  mask = np.arange(length) < lengths[:, None]
  return {
    "image": jnp.asarray(rng.normal(size=(rows, 4, 4, 3)), jnp.float32),
    "text": jnp.asarray(np.where(mask, text, 0), jnp.int32),
    "text_mask": jnp.asarray(mask),
  }


def made(cls, **fields):
  system = build(cls, {**(ATTEND if cls is ShowAttendTell else SECTION), **fields}, "model")
  return system, contract.drawn(system, 0.4)


SYSTEMS = [
  (ShowAndTell, {}),
  (ShowAndTell, {"image_input": "every", "output_tanh": False}),
  (ShowAttendTell, {"attention": "bilinear", "context_gate": False}),
  (
    ShowAttendTell,
    dict(
      annotation_layers=2,
      init_layers=2,
      deep_output_tanh=True,
      zero_start=True,
      doubly_stochastic=0.0,
    ),
  ),
]


@pytest.mark.parametrize("cls,fields", SYSTEMS)
def test_a_word_is_said_before_it_is_read(cls, fields):
  """Logits of position t have a gradient to the embeddings of words up to t, and to none behind."""
  system, variables = made(cls, **fields)
  data = batch()

  @jax.jit
  def reach(embedding, position):
    """Which words' embeddings the logits at a position depend on; every word is another here."""
    params = {**variables["params"], "word_embedding": {"embedding": embedding}}
    text = jnp.tile(jnp.arange(LENGTH), (4, 1))
    return system.network.apply({"params": params}, data["image"], text, method="logits")[
      0, position
    ].sum()

  embedding = variables["params"]["word_embedding"]["embedding"]
  for position in range(LENGTH - 1):
    seen = np.abs(np.asarray(jax.grad(reach)(embedding, position))).max(axis=1) > 0
    first = int(system.zero_start) if cls is ShowAttendTell else 0
    assert seen[first : position + 1].all() and not seen[position + 1 :].any()


@pytest.mark.parametrize("cls,fields", SYSTEMS)
def test_beam_search_scores_are_the_log_likelihood_that_training_sees(cls, fields):
  """Step by step with `next` as all at once with `logits`; the stop word is counted, padding is
  not.
  """
  system, variables = made(cls, **fields)
  image = batch()["image"]
  search = functools.partial(system.caption, search=Search(3, LENGTH))
  ids, scores = jax.jit(search)(variables, {"image": image})

  @jax.jit
  def likelihood(variables, image, text, mask):
    logits = system.network.apply({"params": variables["params"]}, image, text, method="logits")
    return token_log_likelihood(logits, jnp.asarray(text)[:, 1:], jnp.asarray(mask)[:, 1:]).sum(
      axis=1
    )

  for beam in range(3):
    text = np.pad(np.asarray(ids[:, beam]), ((0, 0), (1, 0)))
    ended = np.cumsum(text == 1, axis=1)
    mask = (ended == 0) | ((ended == 1) & (text == 1))
    np.testing.assert_allclose(
      likelihood(variables, image, text, mask), scores[:, beam], rtol=1e-5, atol=1e-5
    )
  if not fields.get("doubly_stochastic", cls is ShowAttendTell):
    data = batch(1)
    loss, aux = jax.jit(
      lambda v: contract.loss(system, v, data, jax.random.key(0), step=0, train=True)
    )(variables)
    log_p = likelihood(variables, data["image"], data["text"], data["text_mask"])
    words = data["text_mask"][:, 1:].sum()
    count = words if cls is ShowAndTell else len(log_p)
    np.testing.assert_allclose(loss, -log_p.sum() / count, rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["nats_per_token"], -log_p.sum() / words, rtol=1e-5)


def test_log_likelihood_by_hand():
  logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]])) + 3.0
  found = token_log_likelihood(logits, jnp.array([[1, 2]]), jnp.array([[True, False]]))
  np.testing.assert_allclose(found, [[np.log(0.25), 0.0]], rtol=1e-6)


@pytest.mark.parametrize("attention", ["mlp", "bilinear"])
def test_attention_sums_to_one_where_a_word_is_said(attention):
  system, variables = made(ShowAttendTell, attention=attention)
  data = batch()
  weights = jax.jit(system.attention_maps)(variables, data)
  assert weights.shape == (4, LENGTH, 2, 2) and (weights >= 0).all()
  said = data["text_mask"].at[:, 0].set(False)
  np.testing.assert_allclose(weights.sum(axis=(2, 3)), said.astype(float), atol=1e-6)
  assert np.ptp(np.asarray(weights[0, 1])) > 1e-3  # not uniform: the test could fail


def test_attention_scores_by_hand():
  """e = uᵀ tanh(K a + Q h), and hᵀ W a."""
  rng = np.random.default_rng(0)
  hidden, values = (
    jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 5), (2, 4, 8))
  )
  for attention in ("mlp", "bilinear"):
    system, variables = made(ShowAttendTell, attention=attention)
    params = variables["params"]
    kernel = params["annotation_keys_0"]["kernel"]
    if attention == "mlp":
      keys = values @ kernel + params["annotation_keys_0"]["bias"]
      query = hidden @ params["query"]["kernel"]
      expected = jnp.tanh(keys + query[:, None]) @ params["score"]
    else:
      keys = values @ kernel
      expected = jnp.einsum("bh,bph->bp", hidden, keys)
    found = system.network.apply({"params": params}, keys, hidden, method="scores")
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_doubly_stochastic_penalty_by_hand():
  """Two words, two places; one caption of two words, one of one word."""
  weights = jnp.array([[[0.5, 0.5], [1.0, 0.0]], [[0.25, 0.75], [0.9, 0.1]]])
  mask = jnp.array([[True, True], [True, False]])
  # Sums over time: (1.5, 0.5) and (0.25, 0.75); squares of what is missing to 1: .25, .25 and
  # .5625, .0625.
  caption, _ = made(ShowAttendTell)
  released, _ = made(ShowAttendTell, penalty="released")
  np.testing.assert_allclose(caption._penalty(weights, mask).mean, (0.5 + 0.625) / 2)
  np.testing.assert_allclose(released._penalty(weights, mask).mean, (0.8125 + 0.3125) / 2)


def tiny(**fields):
  """Two words over four places: 16 ways to look, few enough to sum over."""
  system, variables = made(
    ShowAttendTell,
    selection="hard",
    expected_share=0.0,
    reward_scale=1.0,
    entropy_weight=0.0,
    doubly_stochastic=0.0,
    **fields,
  )
  data = {
    "image": batch()["image"][:1],
    "text": jnp.array([[0, 3, 1]]),
    "text_mask": jnp.ones((1, 3), bool),
  }
  return system, variables, data


def exact(system, params, data):
  """Σ_s p(s) log p(y | s), each way to look forced by its noise."""
  ways = jnp.array(list(itertools.product(range(4), repeat=2)))
  noise = 1e6 * jax.nn.one_hot(ways, 4)
  rows = len(ways)
  logits, trace = system.network.apply(
    {"params": params},
    jnp.tile(data["image"], (rows, 1, 1, 1)),
    jnp.tile(data["text"], (rows, 1)),
    Selection(noise, jnp.ones(rows, bool)),
  )
  log_p = token_log_likelihood(
    logits, jnp.tile(data["text"][:, 1:], (rows, 1)), jnp.ones((rows, 2), bool)
  )
  return (jnp.exp(trace.log_choice.sum(axis=1)) * log_p.sum(axis=1)).sum(), jnp.exp(
    trace.log_choice.sum(axis=1)
  ).sum()


@pytest.fixture(scope="module")
def drawn_and_summed():
  """(Baseline → gradients of 100 times 1000 draws; the sum of p and the gradient of
  the expectation.)
  """
  system, variables, data = tiny()
  learned = {k: v for k, v in variables["params"].items() if k != "encoder"}
  with_encoder = lambda params: {**params, "encoder": variables["params"]["encoder"]}
  total, gradient = jax.jit(
    jax.value_and_grad(lambda p: exact(system, with_encoder(p), data), has_aux=True)
  )(learned)
  many = {k: jnp.tile(v, (1000, *[1] * (v.ndim - 1))) for k, v in data.items()}

  def loss(params, baseline, key):
    variables = {"params": with_encoder(params), "state": {"reward": {"baseline": baseline}}}
    return contract.loss(system, variables, many, key, step=0, train=True)[0]

  @jax.jit
  def estimates(baseline):
    keys = jax.random.split(jax.random.key(5), 100)
    return jax.lax.map(lambda k: jax.grad(loss)(learned, baseline, k), keys)

  return estimates, total[1], gradient


@pytest.mark.parametrize("baseline", [0.0, -4.0])
def test_reinforce_is_unbiased(baseline, drawn_and_summed):
  """10^5 draws: their mean gradient against that of the expectation, each coordinate and all
  together.
  """
  estimates, total, gradient = drawn_and_summed
  np.testing.assert_allclose(total, 1.0, rtol=1e-5)
  estimates, chunks = estimates(jnp.float32(baseline)), 100
  flat = lambda tree, lead: np.concatenate(
    [np.asarray(x).reshape(*lead, -1) for x in jax.tree.leaves(tree)], -1
  )
  found, expected = -flat(estimates, (chunks,)), flat(gradient, ())
  # the second: of f32
  error = found.std(axis=0, ddof=1) / np.sqrt(chunks) + 1e-5 * np.abs(expected).max()
  z = (found.mean(axis=0) - expected) / error
  # Of so many coordinates the greatest z stays within Bonferroni's bound, at 99.9 percent.
  assert np.abs(z).max() < scipy.stats.t.ppf(1 - 0.0005 / len(z), chunks - 1)
  assert np.mean(z**2) < 2
  # What is estimated is not zero, and not what the expectation's place alone would give.
  assert np.abs(expected).max() > 10 * error.max()


def test_the_baseline_follows_the_reward_and_rests_in_evaluation():
  system, variables, data = tiny()
  variables["state"] = {"reward": {"baseline": jnp.float32(-2.0)}}
  noise = lambda train: contract.loss(
    system, variables, data, jax.random.key(0), step=0, train=train
  )
  _, aux = jax.jit(noise, static_argnums=0)(True)
  reward = -2 * aux.metrics["nats_per_token"]
  np.testing.assert_allclose(aux.state["reward"]["baseline"], 0.9 * -2 + 0.1 * reward, rtol=1e-5)
  _, aux = jax.jit(noise, static_argnums=0)(False)
  assert aux.state["reward"]["baseline"] == -2.0


def test_the_expectation_stands_in_for_a_share_of_the_draws():
  """Share 1 is soft attention without penalty, but for the entropy."""
  hard, variables = made(
    ShowAttendTell, selection="hard", expected_share=1.0, doubly_stochastic=0.0, entropy_weight=0.0
  )
  soft, _ = made(ShowAttendTell, doubly_stochastic=0.0)
  losses = [
    jax.jit(
      lambda v, s=s: jax.value_and_grad(
        lambda p: contract.loss(
          s, {**v, "params": p}, batch(), jax.random.key(0), step=0, train=True
        )[0]
      )(v["params"])
    )(variables)
    for s in (hard, soft)
  ]
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *losses)
  features = jnp.zeros((1000, 2, 2, 8))
  text = jnp.zeros((1000, 4), jnp.int32)
  half, _ = made(ShowAttendTell, selection="hard")
  drawn = half._select(jax.random.key(0), features, text).sampled
  assert 400 < drawn.sum() < 600
  together, _ = made(ShowAttendTell, selection="hard", expected_for="batch")
  shares = [together._select(jax.random.key(i), features[:8], text[:8]).sampled for i in range(20)]
  assert {int(s.sum()) for s in shares} == {0, 8}


@pytest.mark.parametrize("cls", [ShowAndTell, ShowAttendTell])
def test_a_frozen_tower_is_a_constant(cls):
  encoder = dict(stage_sizes=(1,), bottleneck=False, width=4, stem="cifar")
  for frozen in (True, False):
    system = build(
      cls, {**(ATTEND if cls is ShowAttendTell else SECTION), "encoder": encoder}, "model"
    )
    variables, paths = contract.init(system), frozenset({"encoder"} if frozen else ())
    call = jax.jit(
      lambda v: contract.loss(
        system, v, batch(), jax.random.key(0), step=0, train=True, frozen=paths
      )
    )
    value, aux = call(variables)
    before, after = (jax.tree.leaves(s["batch_stats"]) for s in (variables["state"], aux.state))
    assert all(np.array_equal(a, b) for a, b in zip(before, after)) == frozen
    # What is frozen is normalised by the statistics that it has, whatever the batch.
    moved = {
      **variables,
      "state": {
        **variables["state"],
        "batch_stats": jax.tree.map(lambda x: x + 1, variables["state"]["batch_stats"]),
      },
    }
    assert (call(moved)[0] != value) == frozen
    assert jax.tree.structure(variables["state"]) == jax.tree.structure(aux.state)


def test_tokens_of_a_vision_transformer_are_annotations_without_the_class_token():
  encoder = dict(image_size=4, patch_size=2, width=8, depth=1, num_heads=2, mlp_dim=8)
  system = build(ShowAttendTell, {**ATTEND, "encoder": encoder}, "model")
  maps = jax.eval_shape(system.attention_maps, contract.shapes(system), batch())
  assert maps.shape == (4, LENGTH, 2, 2)


# No count is published: what the papers' sizes add up to, part by part, decoder and then tower.
def test_parameters_of_the_published_sizes():
  def count(path):
    system = build_system(load_config(path))
    params = contract.shapes(system)["params"]
    size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    return size(params) - size(params["encoder"]), size(params["encoder"])

  v, m, n = 12_000, 512, 512
  lstm = 4 * n * (m + n + 1)
  # GoogLeNet without its head: 6,624,904 - 1,025,000, the batch statistics not being parameters.
  assert count("configs/show_and_tell.py:paper") == (
    1025 * m + v * m + lstm + v * (n + 1),
    5_599_904,
  )
  v, m, n, d = 10_000, 512, 1800, 512
  lstm = 4 * n * (m + d + n + 1)
  attention = 2 * (d + 1) * d + n * d + d + (n + 1)  # two layers of keys, query, score, gate
  start = (d + 1) * d + 2 * (d + 1) * n
  output = (n + 1) * m + (d + 1) * m + v * (m + 1)
  # VGG-19's convolutions: 143,667,240 less its three dense layers.
  dense = 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
  assert count("configs/show_attend_tell.py:paper") == (
    v * m + lstm + attention + start + output,
    143_667_240 - dense,
  )


def test_released_square_matrices_start_orthogonal():
  """arctic-captions, norm_weight: all but the annotations' first (`ortho=False`)."""
  section = dict(ATTEND, embed_dim=8, hidden_dim=8, attention_dim=8, annotation_layers=2)
  params = contract.init(build(ShowAttendTell, section, "model"))["params"]
  gates = np.split(np.asarray(params["lstm"]["input"]["kernel"]), 4, axis=1)
  square = (*gates, *(params[n]["kernel"] for n in ("output_context", "annotation_keys_1")))
  for kernel in square:
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(8), atol=1e-5)
  for name in ("annotation_keys_0", "context_gates", "head"):
    assert np.abs(params[name]["kernel"]).max() < 0.06  # of deviation 0.01


def test_coco_hard_learns_where_to_look_as_the_released_code_does():
  """capgen.py's `known_grads`, Σ over the batch beside the likelihood's mean: of each α that was
  chosen 0.1 of the caption's mean reward above the baseline, of each entropy 0.002.
  """
  config = load_config("configs/show_attend_tell.py:coco_hard")
  system, batch_size, length = build_system(config), config.data.batch_size, 5
  rng = np.random.default_rng(0)
  log_p, log_choice, entropy = jnp.asarray(rng.normal(size=(3, batch_size, length)), jnp.float32)
  mask = jnp.ones((batch_size, length), bool)

  def term(log_choice, entropy):
    trace = Trace(jnp.zeros(()), log_choice, entropy)
    return system._reinforce(log_p, trace, mask, jnp.float32(-0.3))[0].mean

  by_choice, by_entropy = jax.grad(term, argnums=(0, 1))(log_choice, entropy)
  released = -0.1 * (log_p.mean(axis=1, keepdims=True) + 0.3)
  np.testing.assert_allclose(by_choice, jnp.broadcast_to(released, by_choice.shape), rtol=1e-5)
  np.testing.assert_allclose(by_entropy, -0.002, rtol=1e-5)
