"""Zero-shot classification by names that records do not hold."""

import jax.numpy as jnp
import numpy as np
import pytest

from vlx.core.errors import UserError
from vlx.evaluate import predict
from vlx.evaluate.tasks import zero_shot
from vlx.evaluate.tasks.class_names import IMAGENET
from vlx.evaluate.tasks.zero_shot import ZeroShot

NAMES = ("shark", "hen", "shark", "ant")


def test_imagenets_names_are_where_their_ids_are():
  assert len(IMAGENET) == 1000 and len(set(IMAGENET)) == 998
  some = {0: "tench", 134: "crane bird", 207: "Golden Retriever", 517: "construction crane"}
  some |= {340: "zebra", 657: "missile", 744: "missile", 836: "sunglasses", 837: "sunglasses"}
  some |= {933: "cheeseburger", 999: "toilet paper"}
  assert {i: IMAGENET[i] for i in some} == some
  assert not any(name != name.strip() or "#" in name for name in IMAGENET)


class Data:
  """Five images with these labels; the model of `measured` sees what each is called."""

  def __init__(self, labels):
    self.labels = labels

  def examples(self, split, ops, image_transform):
    return split

  def source(self, split):
    return self

  def texts(self, fields):
    return iter(self.labels)


def measured(monkeypatch, labels, seen, **fields):
  """ZeroShot of a model that sees in each image the class of the name in `seen`."""
  vocabulary = sorted({*NAMES, *seen})
  one_hot = lambda names: np.array([[n == w for w in vocabulary] for n in names], np.float32)
  targets = np.array(labels, object if isinstance(labels[0], str) else np.int32)
  monkeypatch.setattr(predict, "texts", lambda model, names, **how: one_hot(names))
  monkeypatch.setattr(
    predict, "predict_examples", lambda *args, **how: (one_hot(seen), {"label": targets})
  )
  monkeypatch.setattr(
    zero_shot, "similarity", lambda system, image, text: jnp.asarray(image @ text.T)
  )
  task = ZeroShot(splits=("val",), classes=("val",), templates=("{}",), field="label", **fields)
  model = type("Model", (), {"system": None})
  return task(model, Data(labels)).measures["val/top1"]


def test_ids_and_sorted_texts_stand_for_names(monkeypatch):
  seen = ["shark", "hen", "shark", "ant", "ant"]
  by_id = measured(monkeypatch, [0, 1, 2, 3, 0], seen, class_names=NAMES)
  folders = ["n01", "n02", "n03", "n04", "n01"]
  assert by_id == measured(monkeypatch, folders, seen, class_names=NAMES) == 80.0
  # Names in the records themselves.
  assert measured(monkeypatch, ["shark", "hen", "shark", "ant", "shark"], seen) == 80.0


@pytest.mark.parametrize(
  "labels, message",
  [
    ([0, 1, 4], "label runs from 0 to 4, but there are 4 class_names"),
    ([-1, 1, 2], "label runs from -1 to 2"),
    (["n01", "n02", "n02"], "hold 2 different texts as label, but there are 4 class_names"),
  ],
)
def test_other_classes_than_those_of_the_names_are_told(monkeypatch, labels, message):
  with pytest.raises(UserError, match=message):
    measured(monkeypatch, labels, ["hen"] * 3, class_names=NAMES)
