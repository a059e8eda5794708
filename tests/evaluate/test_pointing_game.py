"""Shares of boxes in cells; whose boxes a word is measured by."""

import numpy as np

from vlx.evaluate.tasks.pointing_game import _looks, covered


def test_covered_shares_add_up_to_the_area_of_the_boxes():
  boxes = [(0.1, 0.2, 0.35, 0.9), (0.5, 0.0, 1.0, 0.3)]
  share = covered(boxes, (5, 7))
  np.testing.assert_allclose(share.mean(), 0.25 * 0.7 + 0.5 * 0.3)
  assert share.min() == 0 and share.max() <= 1 + 1e-9
  np.testing.assert_allclose(covered([(0.25, 0.5, 0.75, 1.0)], (2, 2)), [[0, 0], [0.5, 0.5]])


def test_a_word_is_measured_by_the_boxes_of_its_objects():
  objects = [
    dict(name="fox", box=(0.0, 0.0, 0.5, 0.5)),
    dict(name="fox", box=(0.5, 0.0, 1.0, 0.5)),
    dict(name="bus", box=(0.5, 0.5, 1.0, 1.0)),
  ]
  maps = np.array([[[0.4, 0.3], [0.2, 0.1]]] * 3)
  (inside, hit, uniform), bus = _looks(["two", "foxes", "bus"], maps, objects)
  np.testing.assert_allclose([inside, hit, uniform], [0.7, 1.0, 0.5])
  np.testing.assert_allclose(bus, [0.1, 0.0, 0.25])


def test_attention_that_is_no_number_points_at_nothing():
  weights = np.full((1, 2, 2), np.nan)
  ((_, hit, _),) = _looks(["cat"], weights, [dict(name="cat", box=(0, 0, 0.5, 0.5))])
  assert hit == 0
