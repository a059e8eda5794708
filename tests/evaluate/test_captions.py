"""Caption metrics: COCO's values on a recorded set, known values, and the evaluator over a whole
split.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import contract
from vlx.core import partition
from vlx.core.errors import UserError
from vlx.data.sources import open_source
from vlx.data.tokenizers import trained as tokenizers
from vlx.evaluate.data import Data
from vlx.evaluate.metrics import captions as metrics
from vlx.evaluate.tasks import captions
from vlx.model import Model

RECORD = pathlib.Path(__file__).parents[1] / "parity" / "captions.json"


@pytest.fixture(scope="module")
def record():
  found = json.loads(RECORD.read_text())
  found["said"] = [text.split() for text in found["tokens_said"]]
  found["true"] = [[text.split() for text in texts] for texts in found["tokens_true"]]
  return found


def test_values_are_cocos(record):
  """pycocoevalcap 1.2, recorded by tests/parity/record/captions.py."""
  said, true, values = record["said"], record["true"], record["values"]
  np.testing.assert_allclose(metrics.bleu(said, true), values["bleu"], rtol=0, atol=1e-6)
  short = [tokens[:5] for tokens in said]
  np.testing.assert_allclose(
    metrics.bleu(short, true), values["bleu_of_five_words"], rtol=0, atol=1e-6
  )
  assert metrics.rouge_l(said, true) == pytest.approx(values["rouge_l"], abs=1e-6)
  assert metrics.CiderD(true)(said, true) == pytest.approx(values["cider_d"], abs=1e-6)


def test_values_of_each_caption_are_cocos(record):
  cider = metrics.CiderD(record["true"])
  for i, (said, true) in enumerate(zip(record["said"], record["true"])):
    assert metrics.rouge_l([said], [true]) == pytest.approx(record["each"]["rouge_l"][i], abs=1e-6)
    assert cider([said], [true]) == pytest.approx(record["each"]["cider_d"][i], abs=1e-6)


def test_words_are_ptbs_where_there_is_no_apostrophe(record):
  texts = [*record["candidates"], *(c for refs in record["references"] for c in refs)]
  tokens = [*record["said"], *(t for refs in record["true"] for t in refs)]
  plain = [(text, t) for text, t in zip(texts, tokens) if "'" not in text]
  assert len(plain) > 200
  assert metrics.tokenize([text for text, _ in plain], "words") == [t for _, t in plain]
  split = metrics.tokenize(["The farmer’s T-shirt, no. 7!"], "words")
  assert split == [["the", "farmer’s", "t", "shirt", "no", "7"]]


@pytest.mark.skipif(not metrics.has_java_parts(), reason="needs Java and pycocoevalcap")
def test_java_parts(record):
  assert metrics.tokenize(record["candidates"], "ptb") == record["said"]
  assert metrics.tokenize(["", "a\u2028cat .", ""], "ptb") == [[], ["a", "cat"], []]
  assert metrics.meteor(record["said"], record["true"]) == pytest.approx(
    record["values"]["meteor"], abs=1e-6
  )


def test_without_java(monkeypatch, record):
  monkeypatch.setattr(metrics, "has_java_parts", lambda: False)
  with pytest.raises(UserError, match="needs Java"):
    metrics.tokenize(["a cat"], "ptb")
  with pytest.raises(UserError, match="words, ptb, not 'ptp'"):
    metrics.tokenize(["a cat"], "ptp")
  assert "meteor" not in metrics.measures(record["candidates"], record["references"], "words")


def test_known_values():
  """A caption that is its reference, one that shares nothing, one word short, one twice told."""
  cat, dog = "a cat sits on a mat".split(), "two dogs run fast today there".split()
  np.testing.assert_allclose(metrics.bleu([cat, dog], [[cat], [dog]]), [1] * 4, atol=1e-6)
  assert metrics.CiderD([[cat], [dog]])([cat, dog], [[cat], [dog]]) == pytest.approx(10)
  assert metrics.rouge_l([cat], [[dog]]) == 0 and metrics.bleu([cat], [[dog]])[0] < 1e-9
  # Five of six words: precision 1, brevity exp(1 - 6/5).
  assert metrics.bleu([cat[:5]], [[cat]])[0] == pytest.approx(np.exp(-0.2), abs=1e-6)
  # "a" is twice in the reference, so the third and fourth are not counted.
  assert metrics.bleu([["a"] * 4], [[cat[:4] + ["a"]]])[0] == pytest.approx(
    0.5 * np.exp(-0.25), abs=1e-6
  )
  # "a cat sits"
  assert metrics.rouge_l(["a mat on cat sits".split()], [[cat]]) == pytest.approx(
    2.44 * (3 / 5) * (3 / 6) / (3 / 6 + 1.44 * 3 / 5)
  )


def test_nearest_neighbour_takes_the_captions_of_the_most_alike():
  bank = np.array([[1.0, 0], [0, 1], [0.1, 1]])
  texts = [
    ("a cat", "one cat"),
    ("a red bus", "a bus", "a red bus here"),
    ("a red bus", "red things"),
  ]
  one = captions.nearest_neighbour(np.array([[9.0, 0.1], [0, 0.1]]), bank, texts)
  assert one[0] == "a cat"  # no caption is more like the other: the first
  assert one[1] == "a red bus"
  assert captions.nearest_neighbour(np.array([[0.1, 1.0]]), bank, texts, k=2) == ["a red bus"]


@dataclasses.dataclass(frozen=True)
class Brightness:
  """A system whose feature is the image's mean color."""

  def embed_image(self, variables, image):
    return image.mean(axis=(1, 2))


MESH = partition.make_mesh(dict(data=-1, fsdp=1, tensor=1))


def test_nearest_neighbour_of_a_whole_split(monkeypatch):
  """Of images that are in the bank the captions are their own: one of the references."""
  monkeypatch.setattr(metrics, "has_java_parts", lambda: False)
  evaluator = captions.NearestNeighbour(splits=("train", "val"), tokenizer="words", batch_size=8)
  model = Model(Brightness(), {}, None, "decode|normalize", MESH)
  measures = contract.measures(
    evaluator, model, Data("scenes:12?size=32&held_out=12", None, "decode|normalize")
  )
  assert measures["train/equal"] == measures["train/objects_right"] == 100
  assert measures["train/bleu4"] == pytest.approx(100)
  assert measures["val/equal"] < 50


@dataclasses.dataclass(frozen=True)
class Teller:
  """A system that says first what the brightness of the image's first pixel tells it, then
  nonsense.
  """

  texts: tuple[tuple[int, ...], ...]
  start_id: int = 0
  end_id: int = 1

  def caption(self, variables, inputs, search):
    assert search.length_penalty == 0.5
    image = inputs["image"]
    index = (jnp.round(image[:, 0, 0, 0] * 255) + variables).astype(jnp.int32)
    best = jnp.array(self.texts)[index][:, : search.max_length]
    rest = jnp.full((len(image), search.beam_size - 1, search.max_length), 2)
    return jnp.concatenate([best[:, None], rest], axis=1), jnp.zeros((len(image), search.beam_size))


def only_index():
  """An op: the image says which record it is of."""
  return lambda example, rng: {**example, "image": np.full((2, 2, 3), example["index"], np.uint8)}


@pytest.mark.parametrize("batch_size", [8, 32])
def test_over_a_split_of_scenes_with_padding_and_devices(monkeypatch, batch_size):
  """The captions come to their own records; a true caption of each is all right in every
  measure.
  """
  monkeypatch.setattr(metrics, "has_java_parts", lambda: False)
  spec = "scenes:8?size=32&held_out=21"
  source = open_source(spec, "combo")
  texts = [source[i]["caption"][i % 5] for i in range(21)]
  words = tokenizers.train_word_level(texts, 1000, 1)
  system = Teller(tuple(map(tuple, words.encode_batch(texts, 40)[0][:, 1:].tolist())))
  transform = "tests.evaluate.test_captions.only_index|normalize((0, 0, 0), (1, 1, 1))"
  evaluator = captions.Captions(
    splits=("combo",),
    tokenizer="words",
    beam_size=2,
    max_length=38,
    length_penalty=0.5,
    batch_size=batch_size,
  )
  data = Data(spec, words, transform)
  with jax.set_mesh(MESH):
    right, figures = evaluator(Model(system, 0, words, transform, MESH), data)
    # each record gets the next one's caption
    wrong, _ = evaluator(Model(system, 1, words, transform, MESH), data)
  assert {k.removeprefix("combo/") for k in right} == {
    "bleu1",
    "bleu2",
    "bleu3",
    "bleu4",
    "rouge_l",
    "cider_d",
    "equal",
    "objects_right",
    "invented",
    "attributes_right",
    "colors_right",
    "counts_right",
    "relations_right",
    "exact",
  }
  for name in ("bleu1", "bleu4", "rouge_l", "equal", "objects_right", "attributes_right", "exact"):
    assert right[f"combo/{name}"] == pytest.approx(100), name
    assert wrong[f"combo/{name}"] < 70, name
  assert right["combo/invented"] == 0 and wrong["combo/invented"] > 70
  assert set(figures) == {"captions_combo"} and len(figures["captions_combo"].axes) == 20


class Directions:
  """A reference model whose images and texts are directions in the plane."""

  def __init__(self, texts):
    self._texts = texts

  def features(self, records):
    return np.array([record["image"] for record in records], float)

  def texts(self, texts):
    assert all(text.startswith("A photo depicts ") for text in texts)
    return np.array([self._texts[text.removeprefix("A photo depicts ")] for text in texts])


def test_clip_score_and_its_form_with_references():
  """Hessel et al., 2021, by hand: 2.5 max(cos, 0), and the harmonic mean with the nearest of the
  references.
  """
  clip = Directions({"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [0.6, 0.8]})
  source = [dict(image=(2.0, 0.0)), dict(image=(0.0, -3.0))]
  found = captions.clip_scores(clip, source, ["a", "c"], [["b", "c"], ["b"]])
  np.testing.assert_allclose(found["clip_score"], [2.5, 0.0])
  np.testing.assert_allclose(found["ref_clip_score"], [2 * 2.5 * 0.6 / 3.1, 0.0])
