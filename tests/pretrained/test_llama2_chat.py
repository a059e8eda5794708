"""Llama 2's conversations: a folder of Meta's chats when its user says that it is a chat model."""

import importlib.resources
import importlib.util
import json
import pathlib
import shutil

import pytest

from vlx.core.errors import UserError
from vlx.data.tokenizers import public

PARITY = pathlib.Path(__file__).parents[1] / "parity"
RECORDED = json.loads((PARITY / "tokenizer_model.json").read_text())
TEMPLATE = importlib.resources.files("vlx.pretrained") / "llama2_chat.jinja"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Meta's, but for the weights, with a tokenizer of that kind."""
  package = pathlib.Path(importlib.util.find_spec("mistral_common").origin).parent
  folder = tmp_path_factory.mktemp("meta")
  shutil.copy(package / RECORDED["model"], folder / "tokenizer.model")
  assert not public.load(folder).has_chat
  (folder / "chat_template.jinja").write_text(TEMPLATE.read_text())
  return folder


SAID = ("system", "Be brief."), ("user", " Hi. "), ("assistant", " Hello. "), ("user", "Bye?")


def turns(*said):
  return [dict(role=role, content=content) for role, content in said]


def test_turns_are_written_as_metas_code_writes_them(folder):
  tokenizer = public.load(folder)
  assert tokenizer.has_chat
  assert tokenizer.render(turns(*SAID)) == (
    "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi. [/INST] Hello. </s><s>[INST] Bye? [/INST]"
  )
  assert tokenizer.render(turns(("user", "Hi."))) == "<s>[INST] Hi. [/INST]"


def test_each_pair_of_turns_is_a_text_of_its_own(folder):
  """Meta's code encodes them one by one, each between the special tokens."""
  tokenizer = public.load(folder)
  first = tokenizer.tokens("[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi. [/INST] Hello. ")
  last = tokenizer.tokens("[INST] Bye? [/INST]")
  assert tokenizer.chat(turns(*SAID)) == [*first, 2, *last] and first[0] == last[0] == 1


@pytest.mark.parametrize(
  "said", ([("assistant", "Hi.")], [("user", "Hi."), ("user", "Hi?")], [SAID[1], SAID[0]])
)
def test_turns_in_another_order_are_told(folder, said):
  with pytest.raises(UserError, match="one after the other"):
    public.load(folder).chat(turns(*said))
