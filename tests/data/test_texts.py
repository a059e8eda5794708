"""Texts, dialogues and labels: which ids, which segments, which of them are learned."""

import json

import numpy as np
import pytest

from tests.data.test_preprocess import run
from vlx.core.errors import UserError
from vlx.data import tokenizers
from vlx.data.records import BadRecord
from vlx.data.sources import open_source

TEXTS = ("what is this", "a red cat and a blue dog", "why", "because it sits")


@pytest.fixture(scope="module")
def words():
  return tokenizers.make(dict(kind="words", vocab_size=40, min_count=1), lambda: TEXTS)


def said(tokenizer, example, where="text_mask"):
  """The words there; decoding stops at the first end, and there may be several."""
  return tokenizer.decode(i for i in example["text"][example[where]] if i != tokenizer.end_id)


def test_a_pair_has_its_segments_and_loses_of_the_longer_text(words):
  example = run(
    'tokenize_pair("a", "b", 8)', {"a": "why", "b": "a red cat and a blue dog"}, tokenizer=words
  )
  assert said(words, example) == "why a red cat and"
  first = example["text_mask"] & (example["segments"] == 0)
  assert said(words, {"text": example["text"], "m": first}, "m") == "why"
  assert (np.diff(example["segments"][example["text_mask"]]) >= 0).all()


def test_of_a_question_and_its_answer_the_answer_is_learned(words):
  record = {"question": "what is this", "answer": "a red cat"}
  example = run("tokenize_answer(12)", record, tokenizer=words)
  assert said(words, example) == "what is this a red cat"
  assert said(words, example, "target_mask") == "a red cat"
  assert example["text"][example["target_mask"]][-1] == words.end_id
  cut = run("tokenize_answer(7)", record, tokenizer=words)
  assert said(words, cut) == "is this a red cat" and said(words, cut, "target_mask") == "a red cat"
  assert cut["text"][0] == words.start_id


def test_of_a_conversation_the_assistants_turns_are_learned(words):
  turns = [
    ("human", "<image>\nwhat is this"),
    ("gpt", "a cat"),
    ("human", "why"),
    ("gpt", "because it sits"),
  ]
  record = {"conversations": [{"from": who, "value": text} for who, text in turns]}
  example = run("conversation(24)", record, tokenizer=words)
  assert said(words, example) == "what is this a cat why because it sits"
  assert said(words, example, "target_mask") == "a cat because it sits"
  assert (example["text"][example["target_mask"]] == words.end_id).sum() == 2
  assert (example["text"][example["text_mask"]] == words.start_id).sum() == 1


@pytest.mark.parametrize(
  "turns",
  [
    "no list",
    [{"from": "human"}],
    [{"from": "nobody", "value": "x"}],
    [{"from": "human", "value": "alone"}],
  ],
)
def test_what_is_no_conversation_is_a_bad_record(words, turns):
  with pytest.raises(BadRecord):
    run("conversation(8)", {"conversations": turns}, tokenizer=words)


def test_three_people_make_an_answer_right():
  record = {"answers": ["red", "red", "blue", "red", "red", "unheard"]}
  target = run('answers(("red", "blue", "green"))', record)["answer"]
  np.testing.assert_allclose(target, [1, 1 / 3, 0], rtol=1e-6)
  np.testing.assert_allclose(run('answers(("red", "blue"))', {"answers": "blue"})["answer"], [0, 1])


def test_regions_are_filled_up_or_cut():
  record = {"boxes": np.ones((3, 4)), "box_labels": [4, 5, 6]}
  example = run('regions(5, ("boxes", "box_labels"))', record)
  assert (
    example["boxes"].shape == (5, 4) and example["region_mask"].tolist() == [True] * 3 + [False] * 2
  )
  assert example["box_labels"].tolist() == [4, 5, 6, 0, 0]
  assert run('regions(2, ("boxes",))', record)["region_mask"].all()


def test_lines_of_a_file_and_of_a_folder(tmp_path):
  (tmp_path / "all.txt").write_text("\n".join(f"line {i}" for i in range(200)) + "\n\n")
  parts = [
    list(open_source(f"text:{tmp_path / 'all.txt'}", split).texts(("text",)))
    for split in ("train", "val")
  ]
  assert sorted(parts[0] + parts[1]) == sorted(f"line {i}" for i in range(200))
  assert 5 < len(parts[1]) < 40
  (tmp_path / "val.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
  assert [r["text"] for r in open_source(f"text:{tmp_path}", "val")] == ["one", "two"]
  with pytest.raises(UserError, match="train.txt"):
    open_source(f"text:{tmp_path}", "train")


def test_llavas_and_alpacas_json(tmp_path):
  turns = [{"from": "human", "value": "<image>\nwhat"}, {"from": "gpt", "value": "a cat"}]
  alpaca = {"instruction": "Add.", "input": "1 + 1", "output": "2"}
  (tmp_path / "train.json").write_text(
    json.dumps([{"image": "cat.png", "conversations": turns}, alpaca])
  )
  (tmp_path / "cat.png").write_bytes(b"bytes")
  first, second = open_source(f"conversations:{tmp_path}", "train")
  assert first["image"] == b"bytes" and first["conversations"] == turns
  assert [t["value"] for t in second["conversations"]] == ["Add.\n1 + 1", "2"]
  (tmp_path / "val.json").write_text("{}")
  with pytest.raises(UserError, match="no list of conversations"):
    open_source(f"conversations:{tmp_path}", "val")


def own(place, split):
  return [{"caption": f"{place} {split}"}]


def test_anybodys_function_is_a_source():
  assert open_source("tests.data.test_texts.own:here", "val")[0]["caption"] == "here val"
  with pytest.raises(UserError, match="nothing_there"):
    open_source("tests.data.test_texts.nothing_there:here", "val")


def test_reading_a_source_through_ends():
  assert sum(1 for _ in open_source("scenes:5?size=16&held_out=2", "train")) == 5
