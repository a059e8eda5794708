"""BPE: nothing is lost, CLIP's published vocabulary gives CLIP's published ids. Words: what is kept."""

import importlib.util
import pathlib
import pickle

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


@pytest.fixture(scope="module")
def words():
  return tokenizers.words(["A man's hat.", "a hat, a RED hat!", "a red dog"], vocab_size=100, min_count=2)


def test_words_seen_often_enough_are_kept_frequent_ones_first(words):
  """a 4, hat 3, red 2; man's and dog once."""
  assert words.vocab_size == 6
  ids, mask = words.encode("The red, red hat is A dog", 10)
  assert ids.tolist() == [0, 2, 5, 5, 4, 2, 3, 2, 1, 0] and mask.sum() == 9
  assert words.decode(ids) == "<unk> red red hat <unk> a <unk>"
  assert (words.start_id, words.end_id) == (0, 1)


def test_a_vocabulary_of_words_has_a_size():
  small = tokenizers.words(["b b b a a c c d"], vocab_size=5, min_count=1)
  assert small.vocab_size == 5 and small.decode(small.encode("a b c d", 6)[0]) == "a b <unk> <unk>"


def test_words_come_back_from_their_file_and_to_a_worker(words, tmp_path):
  words.save(tmp_path / "tokenizer.json")
  text = "a red hat"
  for again in (tokenizers.load(tmp_path / "tokenizer.json"), pickle.loads(pickle.dumps(words))):
    assert again.decode(again.encode(text, 8)[0]) == text
    np.testing.assert_array_equal(again.encode(text, 8)[0], words.encode(text, 8)[0])
