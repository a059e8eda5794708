"""Google's BERT: TensorFlow's checkpoints (recorded by tests/parity/record/google_bert.py) and those
that are cut, changed or crafted.
"""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors import safe_open

from tests.pretrained.tf_tables import DATA, HEADER, entry, field, table, write
from vlx import convert, pretrained
from vlx.core.errors import UserError
from vlx.core.system import flatten
from vlx.models.pretraining.bert import MaskedLanguageModel
from vlx.pretrained import bert, tables
from vlx.pretrained.formats.crc32c import crc32c
from vlx.pretrained.formats.tf_bundle import open_tf_bundle

PARITY = pathlib.Path(__file__).parents[1] / "parity"
FOLDER = PARITY / "google_bert"


def recorded(part):
  with safe_open(PARITY / "bert.safetensors", "numpy") as file:
    start = f"tanh/{part}/"
    return {k.removeprefix(start): file.get_tensor(k) for k in file.keys() if k.startswith(start)}


def test_it_says_what_the_same_weights_say_elsewhere():
  found = pretrained.load(FOLDER)
  system, given, expected = found.system, recorded("inputs"), recorded("outputs")
  assert type(system) is MaskedLanguageModel and system.tower.activation == "gelu_tanh"
  words, sentence = jax.jit(system.word_logits)(
    found.variables, given["text"], given["text_mask"], given["segments"]
  )
  for one, other in ((words, expected["words"]), (sentence, expected["next_sentence"])):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())
  assert found.tokenizer.tokens("ab") == [2, 5, 32, 3] and found.image_transform == ""


def test_every_tensor_is_the_one_that_was_written():
  weights, layout = recorded("weights"), bert.from_hugging_face(config("bert"))
  returned = dict(tables.export(layout.rows, pretrained.load(FOLDER).variables))
  assert returned.keys() == weights.keys()
  for name, x in weights.items():
    np.testing.assert_array_equal(returned[name], x, err_msg=name)


def config(model_type):
  return {**json.loads((FOLDER / "bert_config.json").read_text()), "model_type": model_type}


def test_the_table_is_that_of_the_public_files():
  """uncased_L-12_H-768_A-12: names as google-research/bert's modeling.py and run_pretraining.py make
  them.
  """
  large = dict(config("bert"), hidden_size=768, num_attention_heads=12, num_hidden_layers=12)
  large |= dict(intermediate_size=3072, vocab_size=30522, max_position_embeddings=512)
  large |= dict(type_vocab_size=2)
  names = open_tf_bundle(FOLDER / "bert_model.ckpt.index").shapes
  layout = bert.from_google(large, names)
  from tests import contract

  shapes = tables.public_shapes(layout.rows, contract.shapes(layout.system))
  assert sum(map(np.prod, shapes.values())) == 110_106_428
  assert shapes["bert/encoder/layer_11/attention/self/query/kernel"] == (768, 768)
  assert shapes["bert/encoder/layer_0/intermediate/dense/kernel"] == (768, 3072)
  assert shapes["cls/seq_relationship/output_weights"] == (2, 768)


def test_a_checkpoint_is_named_as_users_of_tensorflow_do(tmp_path):
  whole = pretrained.load(FOLDER)
  for name in ("bert_model.ckpt", "bert_model.ckpt.index"):
    found = pretrained.load(FOLDER / name)
    jax.tree.map(np.testing.assert_array_equal, found.variables, whole.variables)
    assert found.tokenizer.vocab_size == 40
  shutil.copytree(FOLDER, tmp_path / "two")
  shutil.copy(FOLDER / "bert_model.ckpt.index", tmp_path / "two" / "model.ckpt-7.index")
  with pytest.raises(UserError, match="holds 2 checkpoints"):
    pretrained.load(tmp_path / "two")
  (tmp_path / "two" / "bert_config.json").write_text(
    json.dumps(config("bert") | {"hidden_act": "relu"})
  )
  with pytest.raises(UserError, match="hidden_act is 'relu'"):
    pretrained.load(tmp_path / "two" / "bert_model.ckpt")


def test_it_becomes_hugging_faces(tmp_path):
  convert.to_vlx(FOLDER, tmp_path / "vlx")
  convert.to_hugging_face(tmp_path / "vlx", tmp_path / "back")
  back = pretrained.load(tmp_path / "back")
  jax.tree.map(np.testing.assert_array_equal, back.variables, pretrained.load(FOLDER).variables)
  assert (
    back.tokenizer.tokens("ab") == [2, 5, 32, 3] and back.system.tower.activation == "gelu_tanh"
  )


def test_heads_by_the_names(tmp_path):
  """Those that are not there are not made up; one that vlx does not know is told."""
  file = open_tf_bundle(FOLDER / "bert_model.ckpt.index")
  tensors = {n: file.fetch(n) for n in file.shapes}
  shutil.copy(FOLDER / "bert_config.json", tmp_path)
  alone = {n: x for n, x in tensors.items() if n.startswith("bert/") and "pooler" not in n}
  write(tmp_path, alone)
  tower = pretrained.load(tmp_path)
  assert "params/pooler/kernel" not in flatten(tower.variables)
  np.testing.assert_array_equal(
    tower.variables["params"]["word_embedding"]["embedding"],
    alone["bert/embeddings/word_embeddings"],
  )
  write(tmp_path, {**tensors, "output_weights": np.zeros((3, 24), np.float32)})
  with pytest.raises(UserError, match="surplus: output_weights"):
    pretrained.load(tmp_path)


# Damage, and files that lie.


@pytest.mark.parametrize("file", ("bert_model.ckpt.index", DATA))
def test_a_file_cut_short_is_told(file, tmp_path):
  shutil.copytree(FOLDER, tmp_path / "x")
  whole = (FOLDER / file).read_bytes()
  for size in (0, 1, 47, 48, len(whole) // 3, len(whole) - 49, len(whole) - 1):
    (tmp_path / "x" / file).write_bytes(whole[:size])
    with pytest.raises(UserError):
      pretrained.load(tmp_path / "x")
  (tmp_path / "x" / file).unlink()
  with pytest.raises(UserError, match="no checkpoint|there is no bert_model"):
    pretrained.load(tmp_path / "x")


def test_a_flipped_bit_is_told_wherever_it_is(tmp_path):
  """Of the index all but what the footer is filled up with, of the data each tensor that is read."""
  shutil.copytree(FOLDER, tmp_path / "x")
  index = (FOLDER / "bert_model.ckpt.index").read_bytes()
  expected = {n: open_tf_bundle(FOLDER / "bert_model.ckpt.index").fetch(n) for n in shapes()}
  told = 0
  for at in range(0, len(index), 7):
    changed = bytearray(index)
    changed[at] ^= 1 << at % 8
    (tmp_path / "x" / "bert_model.ckpt.index").write_bytes(changed)
    try:
      found = open_tf_bundle(tmp_path / "x" / "bert_model.ckpt.index")
    except UserError:
      told += 1
      continue
    assert at >= len(index) - 48
    assert all(np.array_equal(found.fetch(n), expected[n]) for n in shapes())
  assert told > 0.9 * len(range(0, len(index), 7))
  (tmp_path / "x" / "bert_model.ckpt.index").write_bytes(index)
  data = bytearray((FOLDER / DATA).read_bytes())
  data[1234] ^= 4
  (tmp_path / "x" / DATA).write_bytes(data)
  with pytest.raises(UserError, match="are not those that were written"):
    pretrained.load(tmp_path / "x")


def shapes():
  return open_tf_bundle(FOLDER / "bert_model.ckpt.index").shapes


def crafted(tmp_path, *entries, data=bytes(64)):
  (tmp_path / DATA).write_bytes(data)
  (tmp_path / "bert_model.ckpt.index").write_bytes(table([HEADER, *entries]))
  return open_tf_bundle(tmp_path / "bert_model.ckpt.index")


X = np.zeros((2, 3), np.float32)


def test_tables_of_many_blocks_are_read(tmp_path):
  tensors = {f"bert/x_{i}/kernel": np.full((2, i), i, np.float32) for i in range(40)}
  write(tmp_path, tensors)
  found = open_tf_bundle(tmp_path / "bert_model.ckpt.index")
  assert found.shapes == {n: x.shape for n, x in tensors.items()}
  for name, x in tensors.items():
    np.testing.assert_array_equal(found.fetch(name), x)


@pytest.mark.parametrize(
  "entries, message",
  [
    ([(b"a", entry(X, 60))], "ends within a"),
    ([(b"a", entry(X, 2**63))], "ends within a"),
    ([(b"a", entry(X, 0, size=20))], r"float32 \[2, 3\], but has 20 bytes"),
    ([(b"a", entry(X, 0, shape=(2**20, 2**20)))], "but has 24 bytes"),
    ([(b"a", entry(X, 0, shape=(0, 2**39, 2**39)))], "no sensible shape"),
    ([(b"a", entry(X, 0, shape=(0, 2**63), size=0))], "no sensible shape"),
    ([(b"a", entry(X, 0)), (b"b", entry(X, 20))], "b lies inside of another"),
    ([(b"a", entry(X, 0)), (b"a", entry(X, 24))], "not in order"),
    ([(b"b", entry(X, 0)), (b"a", entry(X, 24))], "not in order"),
    ([(b"a", entry(X, 0, kind=7))], "TensorFlow's type 7"),
    ([(b"a", entry(X, 0, shard=1))], "data file 1 of 1"),
    ([(b"a", entry(X, 0, more=field(7, b"")))], "kept in slices"),
    ([(b"a", entry(X, 0)[:-3])], "ends too early"),
    ([(b"\xff", entry(X, 0))], "damaged"),
    ([], "names no tensors"),
    ([(b"a" * 5000, entry(X, 0))], "beyond its block"),
  ],
)
def test_an_index_that_lies_is_told(entries, message, tmp_path):
  with pytest.raises(UserError, match=message):
    crafted(tmp_path, *entries)


def test_checksums_count_where_they_are(tmp_path):
  right = crafted(tmp_path, (b"a", entry(X, 0)), (b"b", entry(X + 1, 24, crc=False)))
  np.testing.assert_array_equal(right.fetch("a"), X)
  np.testing.assert_array_equal(right.fetch("b"), X)
  with pytest.raises(UserError, match="the bytes of a are not those that were written"):
    crafted(tmp_path, (b"a", entry(X + 1, 0))).fetch("a")


def test_many_keys_of_few_bytes_have_an_end(tmp_path):
  """Each shares most letters with the one before: in memory they are far more than in the file."""
  scalar = field(1, 1) + field(5, 4)
  entries = [HEADER, *((b"k" * 100 + b"%06d" % i, scalar) for i in range(20_001))]
  (tmp_path / "x.ckpt.index").write_bytes(table(entries, per_block=len(entries)))
  with pytest.raises(UserError, match="too many entries"):
    open_tf_bundle(tmp_path / "x.ckpt.index")


def test_the_checksum_is_castagnolis():
  """Values of RFC 3720, appendix B.4, and the definition bit by bit for lengths around its rows."""
  bytes_of = lambda data: np.frombuffer(data, np.uint8)
  assert crc32c(bytes_of(b"123456789")) == 0xE3069283
  assert crc32c(np.zeros(32, np.uint8)) == 0x8A9136AA
  assert crc32c(np.arange(32, dtype=np.uint8)) == 0x46DD794E
  data = np.random.default_rng(0).bytes(65_541)
  crc, lengths = 0xFFFFFFFF, {0, 1, 3, 4, 5, 8, 11, 255, 4096, 65_535, 65_536, 65_537, 65_541}
  for length, byte in enumerate([*data, 0]):
    if length in lengths:
      assert crc32c(bytes_of(data[:length])) == crc ^ 0xFFFFFFFF, length
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
