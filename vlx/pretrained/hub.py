"""Checkpoints by their name on Hugging Face's hub."""

import pathlib
import re

from vlx.core.errors import UserError

_SMALL = ("*.json", "*.txt", "*.model", "*.jinja")


def download(name: str) -> pathlib.Path:
  """The folder of a repository ("openai/clip-vit-base-patch32") in the hub's cache, fetched where
  it is not there.

  Of weights, safetensors are taken where there are any, else torch's files.

  Raises:
    UserError: where `name` cannot be one, or the hub does not give it: no network, no such
      repository.
  """
  if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
    raise UserError(f"there is no file or folder {name}")
  import huggingface_hub  # here, for it is slow to import and seldom needed

  try:
    folder = huggingface_hub.snapshot_download(name, allow_patterns=[*_SMALL, "*.safetensors"])
    if not any(pathlib.Path(folder).glob("*.safetensors")):
      folder = huggingface_hub.snapshot_download(
        name, allow_patterns=[*_SMALL, "*.bin", "consolidated.*.pth"]
      )
  except Exception as e:  # Of the network, of HTTP, of the hub's own kinds.
    reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
    raise UserError(
      f"there is no file or folder {name}, and the hub does not give it: {reason}"
    ) from e
  return pathlib.Path(folder)
