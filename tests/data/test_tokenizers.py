"""BPE: nothing is lost, CLIP's published vocabulary gives CLIP's published ids."""

import importlib.util
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from vlx.data import tokenizers
from vlx.errors import UserError


@pytest.fixture(scope="module")
def trained():
  return tokenizers.train(["a man with a hat", "a woman with a red hat"] * 5, 560)


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("C", "Z", "M")), max_size=12))
def test_any_text_comes_back(trained, text):
  """Up to case, white space and mending, whatever the training captions were."""
  ids, mask = trained.encode(text, 80)
  fold = lambda s: "".join(s.lower().split())
  cleaned = tokenizers.clean(text)
  decoded = trained.decode(ids[mask])
  assert fold(decoded) == fold(trained.decode(trained.encode(cleaned, 80)[0]))
  if cleaned.isascii():
    assert fold(decoded) == fold(cleaned)


def test_a_word_never_seen_is_spelled_not_lost(trained):
  ids, mask = trained.encode("zebra 日本", 40)
  assert trained.decode(ids) == "zebra 日本"
  assert mask.sum() == 2 + len("zebra") + 6  # start, end, letters, bytes


def test_frequent_words_become_one_token(trained):
  ids, mask = trained.encode("with a hat", 10)
  assert mask.sum() == 5


def test_save_and_load(trained, tmp_path):
  trained.save(tmp_path / "tokenizer.json")
  again = tokenizers.load(tmp_path / "tokenizer.json")
  for text in ("a man with a red hat", "zebra"):
    np.testing.assert_array_equal(again.encode(text, 20)[0], trained.encode(text, 20)[0])


def test_training_twice_gives_the_same_tokens(trained, tmp_path):
  again = tokenizers.train(["a man with a hat", "a woman with a red hat"] * 5, 560)
  trained.save(tmp_path / "a")
  again.save(tmp_path / "b")
  assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()


@pytest.fixture(scope="module")
def clip():
  package = importlib.util.find_spec("open_clip").submodule_search_locations[0]
  return tokenizers.load_clip(str(pathlib.Path(package) / "bpe_simple_vocab_16e6.txt.gz"))


# Recorded from open_clip 3.3.0's SimpleTokenizer.
CLIP_IDS = {
    "a photo of a cat.": [49406, 320, 1125, 539, 320, 2368, 269, 49407],
    "It's  2,345 DOGS &amp; cats!": [
        49406, 585, 568, 273, 267, 274, 275, 276, 3255, 261, 3989, 256, 49407],
    "déjà-vu — “quoted” ﬁn": [
        49406, 25466, 73, 21259, 268, 13230, 2005, 257, 27706, 257, 10663, 49407],
    "日本 emoji 😀 end": [49406, 39121, 19277, 361, 16327, 7334, 806, 49407],
    "don't you'll we've": [49406, 847, 713, 592, 1342, 649, 1200, 49407],
    "under_score #tag @you 3.14": [
        49406, 1798, 318, 4431, 258, 3640, 287, 592, 274, 269, 272, 275, 49407],
    "ẞ Straße": [49406, 127, 509, 1894, 127, 253, 324, 49407],
}


def test_clip_vocabulary(clip):
  assert (clip.vocab_size, clip.start_id, clip.end_id) == (49408, 49406, 49407)


@pytest.mark.parametrize("text", CLIP_IDS)
def test_clip_ids(clip, text):
  ids, mask = clip.encode(text, 77)
  assert ids[mask].tolist() == CLIP_IDS[text]


def test_not_clips_vocabulary(tmp_path):
  (tmp_path / "x.gz").write_text("hello")
  for path in (tmp_path / "x.gz", tmp_path / "missing"):
    with pytest.raises(UserError, match="vocabulary"):
      tokenizers.load_clip(str(path))


def test_without_dropout_merging_is_the_same_and_with_it_texts_come_back_in_more_pieces(trained):
  text = "A woman with a red hat, zebra"
  plain, mask = trained.encode(text, 40)
  np.testing.assert_array_equal(trained._dropped(text, 0.0, np.random.default_rng(0)), plain[mask][1:-1])
  counts = set()
  for seed in range(20):
    ids, mask = trained.encode(text, 40, 0.3, np.random.default_rng(seed))
    np.testing.assert_array_equal(trained.encode(text, 40, 0.3, np.random.default_rng(seed))[0], ids)
    assert trained.decode(ids) == trained.decode(plain)
    counts.add(mask.sum())
  assert len(counts) > 3
  letters, mask = trained.encode(text, 40, 1.0, np.random.default_rng(0))
  assert mask.sum() == 2 + sum(map(str.isalpha, text)) + 1  # start, end; the comma
