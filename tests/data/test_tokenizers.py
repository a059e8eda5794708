"""BPE: nothing is lost, CLIP's published vocabulary gives CLIP's published ids. Words: what is
kept.
"""

import importlib.util
import json
import pathlib
import pickle
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlx.core import config as configs
from vlx.core.errors import UserError
from vlx.data.tokenizers import load
from vlx.data.tokenizers import trained as tokenizers
from vlx.train.run import Run


@pytest.fixture(scope="module")
def trained():
  return tokenizers.train_bpe(["a man with a hat", "a woman with a red hat"] * 5, 560)


@settings(max_examples=200, deadline=None)
@given(
  text=st.text(
    alphabet=st.characters(codec="utf-8", exclude_categories=("C", "Z", "M")), max_size=12
  )
)
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
  again = load(tmp_path / "tokenizer.json")
  for text in ("a man with a red hat", "zebra"):
    np.testing.assert_array_equal(again.encode(text, 20)[0], trained.encode(text, 20)[0])


def test_training_twice_gives_the_same_tokens(trained, tmp_path):
  again = tokenizers.train_bpe(["a man with a hat", "a woman with a red hat"] * 5, 560)
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
    49406,
    585,
    568,
    273,
    267,
    274,
    275,
    276,
    3255,
    261,
    3989,
    256,
    49407,
  ],
  "déjà-vu — “quoted” ﬁn": [
    49406,
    25466,
    73,
    21259,
    268,
    13230,
    2005,
    257,
    27706,
    257,
    10663,
    49407,
  ],
  "日本 emoji 😀 end": [49406, 39121, 19277, 361, 16327, 7334, 806, 49407],
  "don't you'll we've": [49406, 847, 713, 592, 1342, 649, 1200, 49407],
  "under_score #tag @you 3.14": [
    49406,
    1798,
    318,
    4431,
    258,
    3640,
    287,
    592,
    274,
    269,
    272,
    275,
    49407,
  ],
  "ẞ Straße": [49406, 127, 509, 1894, 127, 253, 324, 49407],
}


def test_clip_vocabulary(clip):
  assert (clip.vocab_size, clip.start_id, clip.end_id) == (49408, 49406, 49407)


@pytest.mark.parametrize("text", CLIP_IDS)
def test_clip_ids(clip, text):
  ids, mask = clip.encode(text, 77)
  assert ids[mask].tolist() == CLIP_IDS[text]


@pytest.mark.parametrize(
  "files", ["vocab.json and merges.txt", "tokenizer.json", "tokenizer.json of pairs"]
)
def test_clip_ids_from_a_folder(clip, files, tmp_path):
  clip.save(tmp_path / "tokenizer.json")
  saved = json.loads((tmp_path / "tokenizer.json").read_text())
  model = saved["model"]
  pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
  if files == "vocab.json and merges.txt":
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, pairs)) + "\n")
  else:
    model["merges"] = pairs if files.endswith("pairs") else [" ".join(m) for m in pairs]
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
  found = tokenizers.load_clip(tmp_path)
  assert (found.vocab_size, found.start_id, found.end_id) == (49408, 49406, 49407)
  for text, expected in CLIP_IDS.items():
    ids, mask = found.encode(text, 77)
    assert ids[mask].tolist() == expected


@pytest.mark.parametrize(
  "content, message",
  [
    ("{}", "cannot be read: KeyError"),
    ('{"model": {"vocab": {"a": 0}, "merges": []}}', "no <|startoftext|>"),
    ('{"model": {"vocab": {"a": []}, "merges": []}}', "no whole numbers"),
    ('{"model": {"vocab": {"a": 0, "b": 0}, "merges": []}}', "two words with the same id"),
    ("[" * 100_000, "cannot be read: RecursionError"),
    ('{"model": {"vocab": {"a": 0}, "merges": ["a b c"]}}', "does not merge pairs"),
    (
      '{"model": {"vocab": {"<|startoftext|>": 0, "<|endoftext|>": 1}, "merges": ["a b"]}}',
      "do not belong together",
    ),
    (None, "neither vocab.json"),
  ],
)
def test_a_folder_with_another_tokenizer_is_told(content, message, tmp_path):
  if content is not None:
    (tmp_path / "tokenizer.json").write_text(content)
  with pytest.raises(UserError, match=re.escape(message)):
    tokenizers.load_clip(tmp_path)


def test_not_clips_vocabulary(tmp_path):
  (tmp_path / "x.gz").write_text("hello")
  for path in (tmp_path / "x.gz", tmp_path / "missing"):
    with pytest.raises(UserError, match="vocabulary"):
      tokenizers.load_clip(str(path))


@pytest.fixture(scope="module")
def words():
  return tokenizers.train_word_level(
    ["A man's hat.", "a hat, a RED hat!", "a red dog"], vocab_size=100, min_count=2
  )


def test_words_seen_often_enough_are_kept_frequent_ones_first(words):
  """a 4, hat 3, red 2; man's and dog once."""
  assert words.vocab_size == 6
  ids, mask = words.encode("The red, red hat is A dog", 10)
  assert ids.tolist() == [0, 2, 5, 5, 4, 2, 3, 2, 1, 0] and mask.sum() == 9
  assert words.decode(ids) == "<unk> red red hat <unk> a <unk>"
  assert (words.start_id, words.end_id) == (0, 1)


def test_a_vocabulary_of_words_has_a_size():
  small = tokenizers.train_word_level(["b b b a a c c d"], vocab_size=5, min_count=1)
  assert small.vocab_size == 5 and small.decode(small.encode("a b c d", 6)[0]) == "a b <unk> <unk>"


def test_words_come_back_from_their_file_and_to_a_worker(words, tmp_path):
  words.save(tmp_path / "tokenizer.json")
  text = "a red hat"
  for again in (load(tmp_path / "tokenizer.json"), pickle.loads(pickle.dumps(words))):
    assert again.decode(again.encode(text, 8)[0]) == text
    np.testing.assert_array_equal(again.encode(text, 8)[0], words.encode(text, 8)[0])


def test_a_config_chooses_words(tmp_path):
  """Learned from the training split's captions, and read again from the run's folder."""
  config = configs.load_config("configs/clip.py:smoke")
  config.data.source = "scenes:100"
  with config.unlocked():
    config.tokenizer = dict(kind="words", min_count=5, vocab_size=200, fields=("caption",))
  learned = Run(config, tmp_path).tokenizer
  assert learned.decode(
    learned.encode("A cat and two dogs on the left of a platypus.", 20)[0]
  ).split()[-3:] == ["of", "a", "<unk>"]
  config.data.source = "scenes:1"  # nothing could be learned of that
  again = Run(config, tmp_path).tokenizer
  assert isinstance(again, tokenizers.WordTokenizer) and again.vocab_size == learned.vocab_size > 50
  config.tokenizer.kind = "wrods"
  with pytest.raises(UserError, match="no tokenizer.kind 'wrods': did you mean 'words'"):
    _ = Run(config, tmp_path / "other").tokenizer


def test_without_dropout_merging_is_the_same_and_with_it_texts_come_back_in_more_pieces(trained):
  text = "A woman with a red hat, zebra"
  plain, mask = trained.encode(text, 40)
  np.testing.assert_array_equal(
    trained._dropped(text, 0.0, np.random.default_rng(0)), plain[mask][1:-1]
  )
  counts = set()
  for seed in range(20):
    ids, mask = trained.encode(text, 40, dropout=0.3, rng=np.random.default_rng(seed))
    np.testing.assert_array_equal(
      trained.encode(text, 40, dropout=0.3, rng=np.random.default_rng(seed))[0], ids
    )
    assert trained.decode(ids) == trained.decode(plain)
    counts.add(mask.sum())
  assert len(counts) > 3
  letters, mask = trained.encode(text, 40, dropout=1.0, rng=np.random.default_rng(0))
  assert mask.sum() == 2 + sum(map(str.isalpha, text)) + 1  # start, end; the comma


def test_a_word_without_end_is_merged_in_parts(trained, monkeypatch):
  """With dropout, merging takes the square of a word's length."""
  lengths, merged = [], tokenizers.merged
  count = lambda symbols, *rest: lengths.append(len(symbols)) or merged(symbols, *rest)
  monkeypatch.setattr(tokenizers, "merged", count)
  ids = trained._dropped("hat" * 1000, 0.1, np.random.default_rng(0))
  assert max(lengths) <= 256 and trained.decode(ids) == "hat" * 1000
