"""DALL-E: published size and masks, causality, the loss, sampling with a cache, and its frozen
tokenizer.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import contract
from vlx.core import config as configs
from vlx.core import system as systems
from vlx.core.errors import UserError
from vlx.models.generation import dalle, dvae
from vlx.models.generation.dalle import DALLE, SequenceLayout
from vlx.models.generation.vqvae import VQVAE

TOKENIZER = VQVAE(16, (4, 4), 1, 4, num_codes=20, code_dim=3)
SMALL = dict(
  tokenizer=TOKENIZER,
  vocab_size=15,
  context_length=6,
  width=16,
  depth=4,
  num_heads=2,
  mlp_dim=24,
  conv_size=3,
)
CELLS = 16


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def texts(batch=3):
  text = jnp.asarray(np.random.default_rng(0).integers(0, 15, (batch, 6)), jnp.int32)
  return text, jnp.arange(6) < jnp.array([6, 4, 2])[:batch, None]


def batch_of(batch=3):
  text, text_mask = texts(batch)
  return {"image": jnp.tanh(normal(batch, 16, 16, 3)), "text": text, "text_mask": text_mask}


@functools.cache
def drawn(system):
  """Variables with every parameter of the decoder drawn: logits of some size, norms that are not
  1.
  """
  own, tokenizer = contract.drawn(system, 0.3), contract.init(system.tokenizer)
  return {kind: {**own[kind], "tokenizer": tokenizer[kind]} for kind in ("params", "state")}


# Equal systems are compiled once.
token_logits = jax.jit(DALLE.token_logits, static_argnums=0)
image_to_tokens = jax.jit(TOKENIZER.image_to_tokens)
sample = jax.jit(
  lambda system, sampler, *args: system.sample_tokens(*args, sampler=sampler), static_argnums=(0, 1)
)


def codes(batch=3, seed=2):
  return jnp.asarray(np.random.default_rng(seed).integers(0, 20, (batch, 4, 4)), jnp.int32)


def test_published_parameters():
  """§2.2, appendix B.1: 64 layers of 12 d² weights, d = 3968."""
  system = DALLE(dvae.DVAE(**dvae.published_size()), **dalle.published_size())
  blocks = contract.shapes(system)["params"]["blocks"]
  kernels = [blocks["attention"][n]["kernel"] for n in ("query", "key", "value", "out")]
  kernels += [blocks["mlp"][n]["kernel"] for n in ("fc1", "fc2")]
  assert sum(k.size for k in kernels) == 64 * 12 * 3968**2 == 12_092_178_432
  assert blocks["attention"]["query"]["kernel"].shape == (64, 3968, 62, 64)


def test_published_order_of_masks():
  """Appendix B.1: layer i ≥ 1 is a column where (i − 2) mod 4 = 0; the last a convolution, the
  rest rows.
  """
  masks = DALLE(dvae.DVAE(**dvae.published_size()), **dalle.published_size()).masks
  assert len(masks) == 64 and masks[:4] == ("row", "column", "row", "row")
  for i, mask in enumerate(masks, 1):
    assert mask == ("conv" if i == 64 else "column" if (i - 2) % 4 == 0 else "row")


def image_to_image(kind):
  """bool [1024, 1024] by Figure 11's caption, key by key."""
  seen = np.zeros((1024, 1024), bool)
  for q in range(1024):
    if kind == "row":  # itself and the 32 before it: the last is in its column, one row up
      keys = [q - back for back in range(33)]
    elif kind == "column":
      keys = [k for k in range(q % 32, q + 1, 32)]
    else:  # 11x11 around it, in raster order
      keys = [q + 32 * dy + dx for dy in range(-5, 1) for dx in range(-5, 6) if 32 * dy + dx <= 0]
    seen[q, [k for k in keys if k >= 0]] = True
  return seen


@pytest.mark.parametrize("kind", ["row", "column", "conv"])
def test_published_masks_position_by_position(kind):
  seen = np.asarray(SequenceLayout(256, 32, 32, 11).mask(kind).dense(1280, 1280))[0]
  np.testing.assert_array_equal(seen[:256], np.tri(256, 1280, dtype=bool))
  assert seen[256:, :256].all()
  np.testing.assert_array_equal(seen[256:, 256:], image_to_image(kind))


def test_columns_put_together_see_the_same():
  layout = SequenceLayout(6, 3, 4, 3)
  queries, keys, values = (normal(2, layout.length, 2, 8, seed=i) for i in range(3))
  found = layout.attend("column", queries, keys, values)
  expected = dalle.attention(
    queries, keys, values, mask=layout.mask("column"), implementation="reference"
  )
  np.testing.assert_allclose(found, expected, atol=1e-6)


def reach(system):
  """Which inputs `[length]` the output of each position depends on, by gradients."""
  network, params = system.network, {"params": drawn(system)["params"]}
  out = lambda x: network.apply(params, x[None], method="decode")[0][0] @ normal(16, seed=5)
  return np.abs(jax.jit(jax.jacobian(out))(normal(6 + CELLS, 16))).sum(axis=2) > 1e-6


@pytest.mark.parametrize("kind", ["full", "row", "column", "conv"])
def test_a_layer_reaches_what_its_mask_shows(kind):
  system = DALLE(**{**SMALL, "depth": 1, "last_mask": kind})
  np.testing.assert_array_equal(reach(system), system.network.layout.mask(kind).dense(22, 22)[0])


def test_causality_of_the_stack_by_gradient():
  """Nothing comes from ahead; all that lies behind arrives after four layers."""
  np.testing.assert_array_equal(reach(DALLE(**SMALL)), np.tri(6 + CELLS, dtype=bool))


def test_loss_by_hand():
  """⅛ over the texts' real tokens but the first, ⅞ over the codes."""
  system, batch = DALLE(**SMALL), batch_of()
  variables = drawn(system)
  loss, aux = jax.jit(
    lambda v, b: contract.loss(system, v, b, jax.random.key(0), step=0, train=True)
  )(variables, batch)
  ids = np.asarray(image_to_tokens(systems.part(variables, "tokenizer"), batch["image"])).reshape(
    3, 16
  )
  words, cells = token_logits(
    system, variables, batch["text"], batch["text_mask"], jnp.asarray(ids)
  )
  logp = lambda logits, i: logits[i] - np.log(np.exp(np.asarray(logits, np.float64)).sum())
  text = [
    -logp(words[b, t - 1], batch["text"][b, t])
    for b, length in enumerate((6, 4, 2))
    for t in range(1, length)
  ]
  image = [-logp(cells[b, p], ids[b, p]) for b in range(3) for p in range(CELLS)]
  np.testing.assert_allclose(aux.metrics["text"], np.mean(text), rtol=1e-5)
  np.testing.assert_allclose(loss, np.mean(text) / 8 + np.mean(image) * 7 / 8, rtol=1e-5)


def test_padding_is_its_own_embedding_of_each_position():
  system = DALLE(**SMALL)
  variables, (text, text_mask), ids = drawn(system), texts(), codes().reshape(3, CELLS)
  logits = functools.partial(token_logits, system)
  cells = logits(variables, text, text_mask, ids)[1]
  other = jnp.where(text_mask, text, 14 - text)
  np.testing.assert_array_equal(logits(variables, other, text_mask, ids)[1], cells)
  padding = variables["params"]["padding"].at[4].add(normal(16))
  moved = {**variables, "params": {**variables["params"], "padding": padding}}
  changed = np.abs(logits(moved, text, text_mask, ids)[1] - cells).max(axis=(1, 2)) > 1e-4
  np.testing.assert_array_equal(changed, [False, True, True])  # the first text has no padding


def test_logits_with_a_cache_are_those_of_teacher_forcing():
  """The text and five codes at once, then one code at a time."""
  system = DALLE(**SMALL)
  network, variables, (text, text_mask) = system.network, drawn(system), texts()
  params, ids = {"params": variables["params"]}, codes().reshape(3, CELLS)
  expected = token_logits(system, variables, text, text_mask, ids)[1]

  @jax.jit
  def read(x, cache):
    x, cache = network.apply(params, x, cache, method="decode")
    return network.apply(params, x, method="image_logits"), cache

  x = network.apply(params, text, text_mask, ids[:, :5], method="embed")
  logits, cache = read(x, network.empty_cache(3))
  found = [logits[:, 6:]]
  for p in range(6, CELLS):
    x = network.apply(params, ids[:, p - 1 : p], p, method="embed_codes")
    logits, cache = read(x, cache)
    found.append(logits)
  np.testing.assert_allclose(
    jnp.concatenate(found, axis=1), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
  )


def generate(system, text, text_mask, seeds, image=None, **how):
  inputs = {"text": text, "text_mask": text_mask} | ({} if image is None else {"image": image})
  return sample(system, DALLE.Sampler(**how), drawn(system), inputs, seeds)


def test_greedy_codes_are_the_likeliest_after_all_before_and_a_prefix_is_kept():
  system, seeds = DALLE(**SMALL), jnp.arange(3)
  (text, text_mask), image = texts(), batch_of()["image"]
  ids = generate(system, text, text_mask, seeds, image, temperature=0.0, keep_rows=1)
  cells = token_logits(system, drawn(system), text, text_mask, ids.reshape(3, CELLS))[1]
  np.testing.assert_array_equal(ids.reshape(3, CELLS)[:, 4:], cells.argmax(-1)[:, 4:])
  kept = image_to_tokens(systems.part(drawn(system), "tokenizer"), image)
  np.testing.assert_array_equal(ids[:, 0], kept[:, 0])
  np.testing.assert_array_equal(
    generate(system, text, text_mask, seeds, image, top_k=1, keep_rows=1), ids
  )
  whole = generate(system, text, text_mask, seeds, temperature=0.0)
  cells = token_logits(system, drawn(system), text, text_mask, whole.reshape(3, CELLS))[1]
  np.testing.assert_array_equal(whole.reshape(3, CELLS), cells.argmax(-1))
  images = jax.jit(functools.partial(system.sample_images, sampler=DALLE.Sampler(temperature=0.0)))(
    drawn(system), {"text": text, "text_mask": text_mask}, seeds
  )
  expected = jax.jit(TOKENIZER.tokens_to_image)(systems.part(drawn(system), "tokenizer"), whole)
  np.testing.assert_allclose(images, expected, atol=1e-6)


def test_a_sampler_that_makes_no_sense_is_told():
  for fields, message in (
    (dict(temperature=-1.0), "temperature"),
    (dict(keep_rows=-1), "keep_rows"),
  ):
    with pytest.raises(UserError, match=message):
      DALLE.Sampler(**fields)
  text, text_mask = texts()
  for rows, image in ((4, batch_of()["image"]), (1, None)):
    with pytest.raises(UserError, match="keep_rows must be below 4"):
      generate(DALLE(**SMALL), text, text_mask, jnp.arange(3), image, keep_rows=rows)


def test_an_image_is_a_function_of_its_seed_whatever_the_batch():
  system, (text, text_mask) = DALLE(**SMALL), texts()
  ids = generate(system, text, text_mask, jnp.array([3, 8, 3]))
  np.testing.assert_array_equal(
    generate(system, text[1:2], text_mask[1:2], jnp.array([8])), ids[1:2]
  )
  assert (ids != generate(system, text, text_mask, jnp.array([4, 9, 4]))).any(axis=(1, 2)).all()


def test_guidance_of_zero_forgets_the_text_and_of_two_goes_past_it():
  system, seeds, (text, text_mask) = DALLE(**SMALL), jnp.arange(3), texts()
  nothing = jnp.zeros_like(text_mask)
  found = generate(system, text, text_mask, seeds, temperature=0.0, guidance_scale=0.0)
  np.testing.assert_array_equal(found, generate(system, text, nothing, seeds, temperature=0.0))
  found = generate(system, text, text_mask, seeds, temperature=0.0, guidance_scale=2.0)
  logits = functools.partial(token_logits, system)
  with_text, without = (
    logits(drawn(system), text, mask, found.reshape(3, CELLS))[1] for mask in (text_mask, nothing)
  )
  np.testing.assert_array_equal(found.reshape(3, CELLS), (2 * with_text - without).argmax(-1))


def test_how_the_stack_is_run_changes_no_value_and_no_gradient():
  batch = batch_of()

  def loss(system):
    variables = drawn(DALLE(**SMALL))
    value = lambda p: contract.loss(
      system, {**variables, "params": p}, batch, jax.random.key(0), step=0, train=True
    )[0]
    return jax.jit(jax.value_and_grad(value))(variables["params"])

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    loss(DALLE(**SMALL)),
    loss(DALLE(**SMALL, remat=True, unroll=2)),
  )


def test_a_hidden_text_is_all_padding_and_has_no_loss():
  system, batch = DALLE(**SMALL, text_dropout=1.0), batch_of()
  variables = drawn(DALLE(**SMALL))
  loss = jax.jit(
    lambda b, train: (
      contract.loss(system, variables, b, jax.random.key(0), step=0, train=train)[1].metrics
    ),
    static_argnums=1,
  )
  other = {**batch, "text": 14 - batch["text"]}
  assert loss(batch, True)["text"] == 0
  assert loss(batch, True)["image"] == loss(other, True)["image"]
  assert loss(batch, False)["image"] != loss(other, False)["image"]


SECTION = {k: v for k, v in SMALL.items() if k != "tokenizer"}


def test_the_tokenizer_is_a_system_that_tokenizes_images():
  smoke = configs.build(
    DALLE, {**SECTION, "tokenizer": configs.part_from("configs/vqvae.py:smoke")}, "model"
  )
  assert smoke.tokenizer.grid == (4, 4) and smoke.tokenizer.num_codes == 32
  with pytest.raises(UserError, match="model.tokenizer: ViT lacks TokenizesImages"):
    configs.build(
      DALLE, {**SECTION, "tokenizer": configs.part_from("configs/vit.py:smoke")}, "model"
    )
  with pytest.raises(UserError, match=r"model.tokenizer must be a system, dict\(source=PATH\)"):
    configs.build(DALLE, {**SECTION, "tokenizer": "runs/vqvae"}, "model")


def test_fields_that_do_not_go_together_are_told():
  for change, message in (
    (dict(pattern=("diagonal",)), "one of full, row, column, conv, not 'diagonal'"),
    (dict(num_heads=3), "width 16 does not divide into 3 heads"),
  ):
    with pytest.raises(UserError, match=message):
      configs.build(
        DALLE,
        {**SECTION, "tokenizer": configs.part_from("configs/vqvae.py:smoke"), **change},
        "model",
      )
