"""What a folder may have run: vlx's own, and what the user trusts."""

import json
import sys

import pytest

import vlx
from vlx.core import config as configs
from vlx.core import trust
from vlx.core.errors import UserError

NAMES = ("evil", "my-mod", "évil")  # of modules; all can be imported


@pytest.fixture(autouse=True)
def only_vlx(monkeypatch):
  monkeypatch.setattr(trust, "_trusted", {"vlx"})


def folder(tmp_path, monkeypatch, **changes):
  """A run's folder whose config is changed, and a module that would say that it was run."""
  for name in NAMES:
    (tmp_path / f"{name}.py").write_text(
      f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass System: ...\ndef op(): ...\n"
    )
  monkeypatch.syspath_prepend(str(tmp_path))
  config = configs.load_config("configs/clip.py:smoke")
  configs.write(tmp_path, configs.Kept(config, config))
  content = json.loads((tmp_path / "config.json").read_text())
  for part in ("requested", "resolved"):
    for path, value in changes.items():
      *sections, name = path.split("__")
      inside = content[part]
      for section in sections:
        inside = inside[section]
      inside[name] = value
  (tmp_path / "config.json").write_text(json.dumps(content))
  return tmp_path


@pytest.mark.parametrize(
  "changes",
  (
    dict(system="evil.System"),
    dict(system="my-mod.System"),
    dict(system="évil.System"),
    dict(data__preprocess="decode|évil.op(3)|normalize"),
    dict(data__source="my-mod.System:x"),
    dict(data__source="mix:1*tfds:emoji;2*my-mod.System:x"),
    dict(model__image={"system": "evil.System"}),
    dict(evaluators__retrieval__type="evil.System"),
    dict(tokenizer__kind="evil.System"),
    dict(data__source="evil.System:x"),
    dict(data__source="mix:1*tfds:emoji;2*evil.System:x"),
    dict(data__preprocess="decode|evil.op(3)|normalize"),
    dict(data__image_transform="evil.op"),
    dict(data__streams={"a": {"source": "evil.System:x"}}),
    dict(evaluators__retrieval__image_transform="decode| evil.op"),
  ),
)
def test_code_of_others_that_a_folder_names_is_not_run(tmp_path, monkeypatch, changes):
  place = folder(tmp_path, monkeypatch, **changes)
  for read in (configs.read, vlx.load):
    with pytest.raises(UserError, match=r"names (\S+)\.\w+, which is not vlx's own.*VLX_TRUST=\1"):
      read(place)
  assert not (tmp_path / "ran").exists() and not {*NAMES} & {*sys.modules}


def test_what_the_user_trusts_is(tmp_path, monkeypatch):
  place = folder(tmp_path, monkeypatch, data__source="evil.System:x")
  monkeypatch.setenv("VLX_TRUST", "other,evil")
  assert configs.read(place)
  monkeypatch.delenv("VLX_TRUST")
  trust.trust("evil")
  assert configs.read(place)
  trust._trusted.remove("evil")
  config = configs.load_config("configs/clip.py:smoke")
  config.data.source = "evil.System:x"  # named on the command line
  trust.trust_named(config.to_dict())
  assert configs.read(place)


def test_a_part_of_schema_1_that_is_somebodys_file_is_not_run(tmp_path):
  (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
  with pytest.raises(UserError, match="not a config of vlx's own"):
    configs._part_of_schema1(f"{tmp_path}/evil.py:x")
  assert not (tmp_path / "ran").exists()
  assert configs._part_of_schema1("configs/vqvae.py:smoke")["system"].startswith("vlx.")


@pytest.mark.parametrize("content", (b"{", b"[1]", b"\xff\xfe", b"null", b"[" * 100_000, b""))
def test_a_damaged_config_is_a_line(tmp_path, content):
  (tmp_path / "config.json").write_bytes(content)
  with pytest.raises(UserError, match="is damaged"):
    configs.read(tmp_path)
