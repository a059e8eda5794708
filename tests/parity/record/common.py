"""What the recorders of torch models share."""

import importlib.metadata
import json
import pathlib
import re
import tempfile
from collections.abc import Sequence

import torch
from safetensors.torch import load_file, save_file
from torch import library as operators

# Before torchvision is imported, by a recorder or by transformers: built for another torch than the
# one that is installed, it lacks these two.
_torchvision = operators.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
  _torchvision.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

PARITY = pathlib.Path(__file__).resolve().parents[1]


def redrawn(model: torch.nn.Module, seed: int) -> torch.nn.Module:
  """The model with weights from N(0, 0.1), those of norms around 1: default initialisations hide
  bugs.
  """
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, weight in model.named_parameters():
      weight.normal_(0, 0.1, generator=generator)
      if "norm" in name.lower() and name.endswith("weight"):
        weight.add_(1)
  return model.eval()


# As diffusers, ldm and guided-diffusion name them: the first layer of a model of images, the last of
# each of its branches and the way into a transformer; and what an attention's weights and a gate
# come from.
FAINT = r"((?<!decoder\.)conv_in|conv2|proj_in|to_out\.0|ff\.net\.2|input_blocks\.0\.0|out_layers\.3)\.\w+$"
STRONG = r"(to_q|to_k|\.q|\.k|ff\.net\.0\.proj)\.\w+$"


def telling(model: torch.nn.Module) -> torch.nn.Module:
  """The re-drawn model, so scaled that all it does shows: the residual streams small, as the
  epsilons of norms are not seen behind a variance of 1, and attention far from a plain mean.
  """
  with torch.no_grad():
    for name, weight in model.named_parameters():
      if re.search(FAINT, name):
        weight.mul_(0.1)
      elif re.search(STRONG, name):
        weight.mul_(min(3, 17 / weight[0].numel() ** 0.5))
  return model


def halved(model: torch.nn.Module) -> torch.nn.Module:
  """The model with weights that half precision holds."""
  for x in model.state_dict().values():
    if x.is_floating_point():
      x.copy_(x.half().float())
  return model


def half_file(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
  """Weights of a `halved` model in half the bytes."""
  return {k: x.half() if x.is_floating_point() else x for k, x in weights.items()}


def public_file(model) -> dict[str, torch.Tensor]:
  """What `save_pretrained` writes: not always the names in memory, and no tied tensor twice."""
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    (file,) = pathlib.Path(folder).glob("*.safetensors")
    return load_file(file)


def save(name: str, cases: dict[str, dict], packages: Sequence[str] = ("transformers",)) -> None:
  """Writes `tests/parity/NAME.safetensors`.

  Args:
    cases: name → {"config": anything of JSON, and dicts of tensors: "weights", "inputs",
      "outputs"}.
    packages: Those beside torch whose versions the file tells.
  """
  tensors = {
    f"{case}/{part}/{key}": tensor.detach().clone().contiguous()
    for case, parts in cases.items()
    for part, group in parts.items()
    if part != "config"
    for key, tensor in group.items()
  }
  metadata = {case: json.dumps(parts["config"]) for case, parts in cases.items()}
  metadata["versions"] = json.dumps(
    {p: importlib.metadata.version(p) for p in ("torch", *packages)}
  )
  save_file(tensors, PARITY / f"{name}.safetensors", metadata)
  (PARITY / f"{name}.safetensors").chmod(0o644)


def save_names(name: str, model) -> None:
  """Writes `tests/parity/names/NAME.txt`: name and shape of each tensor of the model's public file.

  The model may be on torch's meta device, which `save_pretrained` does not take: tied tensors are
  left out here.
  """
  tied = {n for n, _ in model.named_parameters(remove_duplicate=False)} - {
    n for n, _ in model.named_parameters()
  }
  write_names(
    name, {key: tensor.shape for key, tensor in model.state_dict().items() if key not in tied}
  )


def public_names(model) -> dict[str, tuple[int, ...]]:
  """Names and shapes in the file that `save_pretrained` writes, of a model on the meta device."""
  from transformers.core_model_loading import revert_weight_conversion

  return {
    key: tuple(x.shape) for key, x in revert_weight_conversion(model, model.state_dict()).items()
  }


def write_names(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
  """Writes `tests/parity/names/NAME.txt`, a tensor a line."""
  lines = [" ".join([key, *map(str, shape)]) for key, shape in sorted(shapes.items())]
  (PARITY / "names" / f"{name}.txt").write_text("\n".join(lines) + "\n")


def hidden_states(layers) -> list[torch.Tensor]:
  """A list that will hold each layer's output, in order, once the model has run."""
  outputs = []
  for layer in layers:
    layer.register_forward_hook(
      lambda _, __, out: outputs.append(out if torch.is_tensor(out) else out[0])
    )
  return outputs
