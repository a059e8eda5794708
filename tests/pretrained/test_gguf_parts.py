"""Models in several GGUF files, as llama.cpp's package `gguf` writes them."""

import importlib
import shutil

import gguf
import numpy as np
import pytest

from vlx.core.errors import UserError
from vlx.pretrained.formats.gguf import open_gguf

load = importlib.import_module("vlx.pretrained.load")  # the name is a function's too
TENSORS = {f"blk.{i}.attn_norm.weight": np.full(8, i, np.float32) for i in range(5)}


def written(folder, **options):
  """The files of a model, in order."""
  writer = gguf.GGUFWriter(folder / "m.gguf", "llama", **options)
  writer.add_block_count(5)
  for name, x in TENSORS.items():
    writer.add_tensor(name, x)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return sorted(folder.glob("*.gguf"))


@pytest.fixture(params=[dict(), dict(small_first_shard=True)], ids=["even", "small first"])
def parts(tmp_path, request):
  return written(tmp_path, split_max_tensors=2, **request.param)


def test_any_part_gives_the_whole_model(parts):
  for path in parts:
    file = open_gguf(path)
    assert file.metadata["llama.block_count"] == 5
    assert file.shapes == {name: x.shape for name, x in TENSORS.items()}
    for name, x in TENSORS.items():
      np.testing.assert_array_equal(file.fetch(name), x)


def test_a_folder_of_parts_is_one_model(parts, monkeypatch):
  opened = []
  monkeypatch.setattr(load, "_of_file", opened.append)
  load._find(parts[0].parent)
  assert opened == [parts[0]]
  shutil.copy(parts[0], parts[0].with_name("other.gguf"))
  with pytest.raises(UserError, match="many files of weights"):
    load._find(parts[0].parent)


def test_a_part_says_which_it_is_and_what_is_missing(parts):
  count = len(parts)
  parts[1].unlink()
  with pytest.raises(UserError, match=f"part 1 of {count} of a model; .* no {parts[1].name}$"):
    open_gguf(parts[0])
  renamed = parts[0].rename(parts[0].with_name("model.gguf"))
  with pytest.raises(UserError, match=f"one of {count} parts"):
    open_gguf(renamed)


def test_parts_that_are_others_than_their_names_say(parts):
  parts[1].write_bytes(parts[2].read_bytes())
  with pytest.raises(UserError, match=f"{parts[1].name} is not part 2 of {len(parts)}"):
    open_gguf(parts[0])


def test_a_part_of_another_model(tmp_path):
  """Its tensors are then not all there."""
  first = written(tmp_path, split_max_tensors=2)
  (tmp_path / "x").mkdir()
  writer = gguf.GGUFWriter(tmp_path / "x" / "m.gguf", "llama", split_max_tensors=2)
  for i in range(5):
    writer.add_tensor(f"blk.{i % 2}.{i}.weight" if i != 2 else next(iter(TENSORS)), np.ones(8))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  shutil.copy(tmp_path / "x" / first[1].name, first[1])
  with pytest.raises(UserError, match="do not hold 5 tensors, each once"):
    open_gguf(first[0])
