"""Masks: what each sees, written out; tiles and run-time ranges against the dense array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlx.ops import masks
from vlx.ops.masks import EMPTY, FULL

TEXT, SIDE = 6, 4
LENGTH = TEXT + SIDE * SIDE


def dense(mask, q=LENGTH, k=LENGTH):
  return np.asarray(mask.dense(q, k))


def written_out(rule):
  """bool [LENGTH, LENGTH] by a rule over (row, column) of image positions, all see the text."""
  out = np.zeros((LENGTH, LENGTH), bool)
  for q in range(LENGTH):
    for k in range(q + 1):
      out[q, k] = k < TEXT or rule(divmod(q - TEXT, SIDE), divmod(k - TEXT, SIDE))
  return out


@pytest.mark.parametrize(
  "mask, expected",
  [
    (masks.Full(), np.ones((LENGTH, LENGTH), bool)),
    (masks.Causal(), np.tri(LENGTH, dtype=bool)),
    (masks.Causal(offset=3), np.tri(LENGTH, k=3, dtype=bool)),
    (masks.PrefixCausal(5), np.tri(LENGTH, dtype=bool) | (np.arange(LENGTH) < 5)),
    (masks.Window(3, 1), np.tri(LENGTH, k=1, dtype=bool) & ~np.tri(LENGTH, k=-4, dtype=bool)),
    (masks.Keys(7), np.broadcast_to(np.arange(LENGTH) < 7, (LENGTH, LENGTH))),
    (
      masks.Row(TEXT, SIDE),
      written_out(lambda q, k: 0 <= (SIDE * q[0] + q[1]) - (SIDE * k[0] + k[1]) <= SIDE),
    ),
    (masks.Column(TEXT, SIDE, SIDE), written_out(lambda q, k: q[1] == k[1])),
    # Column-major: the quotient of a position is its column.
    (masks.Column(TEXT, SIDE, SIDE, transposed=True), written_out(lambda q, k: q[0] == k[0])),
    (
      masks.Conv(TEXT, SIDE, 3),
      written_out(
        lambda q, k: (SIDE * q[0] + q[1]) - (SIDE * k[0] + k[1]) in (0, 1, SIDE - 1, SIDE, SIDE + 1)
      ),
    ),
  ],
  ids=lambda x: str(x) if isinstance(x, masks.Mask) else "",
)
def test_what_is_visible(mask, expected):
  np.testing.assert_array_equal(dense(mask)[0], expected)


def test_packed_segments_see_themselves_and_padding_sees_nothing():
  ids = jnp.array([[1, 1, 2, 2, 2, 0], [3, 3, 3, 0, 0, 0]])
  seen = dense(masks.Segments.of(ids) & masks.Causal(), 6, 6)
  for b in range(2):
    for q in range(6):
      for k in range(6):
        assert seen[b, q, k] == (ids[b, q] == ids[b, k] != 0 and k <= q)


def test_text_sees_the_image_that_began_last():
  # tokens:            a      <image> b      <image> c
  starts = jnp.array([[False, True, False, True, False]])
  seen = dense(masks.Segments.per_image(starts, images=2, tokens=3), 5, 6)[0]
  first, second = [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]
  np.testing.assert_array_equal(seen, np.array([[0] * 6, first, first, second, second], bool))


def test_a_query_at_a_position_of_its_own_sees_the_keys_up_to_it():
  positions = np.array([[0, 1, 2], [4, 5, 6], [2, 2, 9]])
  seen = dense(masks.UpTo(jnp.asarray(positions)), 3, 8)
  np.testing.assert_array_equal(seen, np.arange(8) <= positions[:, :, None])


@pytest.mark.parametrize(
  "mask", [masks.Row(TEXT, SIDE), masks.Conv(TEXT, SIDE, 3), masks.Causal()], ids=str
)
def test_a_query_at_a_position_of_its_own_sees_what_the_mask_shows_there(mask):
  positions = np.array([[0, 7, 21], [4, 12, 3]])
  seen = dense(masks.At(mask, jnp.asarray(positions)), 3, LENGTH)
  np.testing.assert_array_equal(seen, dense(mask)[0][positions])


def masks_of(length):
  side = int(np.sqrt(max(length - 3, 1)))
  ids = st.lists(st.integers(0, 3), min_size=2 * length, max_size=2 * length).map(
    lambda ids: jnp.array(ids).reshape(2, length)
  )
  simple = st.one_of(
    st.just(masks.Full()),
    st.integers(-3, 3).map(masks.Causal),
    st.integers(0, length).map(masks.PrefixCausal),
    st.tuples(st.integers(0, 5), st.integers(0, 5)).map(lambda w: masks.Window(*w)),
    st.integers(1, length).map(masks.Keys),
    st.just(masks.Row(3, side)),
    st.just(masks.Conv(3, side, 3)),
    st.booleans().map(lambda t: masks.Column(3, side, side, t)),
    ids.map(masks.Segments.of),
    ids.map(masks.KeyPadding),
    st.integers(0, length).flatmap(lambda shift: ids.map(lambda ids: masks.UpTo(ids + shift))),
    ids.map(lambda ids: masks.At(masks.Conv(1, side, 3), 5 * ids)),
  )
  pair = st.tuples(simple, simple, st.booleans()).map(
    lambda p: p[0] & p[1] if p[2] else p[0] | p[1]
  )
  return st.one_of(simple, pair, st.tuples(pair, simple).map(lambda p: p[0] & p[1]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_tiles_and_ranges_tell_the_truth(data):
  length = data.draw(st.integers(4, 40))
  mask = data.draw(masks_of(length))
  block_q, block_k = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
  seen = dense(mask, length, length)
  kinds = mask.tiles(length, length, block_q, block_k)
  may = np.broadcast_to(
    np.asarray(mask.may_see(length, length, block_q, block_k)), (len(seen), *kinds.shape)
  )
  for i in range(kinds.shape[0]):
    for j in range(kinds.shape[1]):
      tile = seen[:, i * block_q : (i + 1) * block_q, j * block_k : (j + 1) * block_k]
      if kinds[i, j] == EMPTY:
        assert not tile.any()
      if kinds[i, j] == FULL:
        assert tile.all()
      if not mask.depends_on_data:  # nothing is left open: the kind is exact
        assert (kinds[i, j] != EMPTY) == tile.any() and (kinds[i, j] == FULL) == tile.all()
      assert (may[:, i, j] | ~tile.any(axis=(1, 2))).all()


def test_masks_pass_through_transformations():
  ids = jnp.array([[1, 1, 0], [2, 2, 2]])
  mask = masks.Segments.of(ids) & masks.Causal()
  through = jax.jit(lambda m: jax.tree.map(lambda x: x, m).dense(3, 3))(mask)
  np.testing.assert_array_equal(through, mask.dense(3, 3))
  assert hash(masks.Causal() & masks.Window(3)) == hash(masks.Causal() & masks.Window(3))


@pytest.mark.parametrize(
  "mask",
  [
    masks.Row(64, 32),
    masks.Column(64, 32, 32),
    masks.Column(64, 32, 32, transposed=True),
    masks.Conv(64, 32, 11),
  ],
  ids=str,
)
@pytest.mark.parametrize("block", [128, 256])
def test_tiles_visited_of_dalles_masks(mask, block):
  length = 64 + 32 * 32
  seen = dense(mask, length, length)[0]
  blocks = -(-length // block)
  held = sum(
    seen[i * block : (i + 1) * block, j * block : (j + 1) * block].any()
    for i in range(blocks)
    for j in range(blocks)
  )
  assert (mask.tiles(length, length, block, block) != EMPTY).sum() == held
