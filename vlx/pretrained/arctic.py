"""The authors' Show, Attend and Tell (kelvinxu/arctic-captions, capgen.py): `NAME.npz` of Theano's
parameters beside the options `NAME.npz.pkl`.

It has no vision tower: there annotations were computed before, by VGG-19 (conv5_4). Three things
differ from vlx's variables:

- Gates stand in the order i, f, o, g.
- Dropout there leaves what it keeps as it is and halves everything when it is not training; here
  what it keeps is doubled. So the kernels that read what was dropped are halves of those there.
- The first word is a zero vector and has no id; id 0, the end of a caption, which is never read,
  stands for it. The bias of attention's output moves all scores alike, and is not kept.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlx.core.errors import UserError
from vlx.core.files import check_ordinary
from vlx.models.captioning.show_attend_tell import ShowAttendTell
from vlx.models.vision.classifier import IMAGENET
from vlx.models.vision.vgg import CONVOLUTIONS, VGGTower
from vlx.pretrained import fields
from vlx.pretrained.formats import TensorFile, pickles
from vlx.pretrained.tables import CheckpointMap, Row
from vlx.pretrained.torchvision_ops import torchvision_ops

ABSENT = (
  "holds a decoder without its vision tower; start a run from it by config.init: {'source': …, 'without':"
  " ('encoder/.*', 'baseline')}"
)
# The layers that vlx's decoder does not have, by options that change them.
_FIXED = dict(
  lstm_encoder=False, n_layers_lstm=1, n_layers_out=1, prev2out=True, ctx2out=True,
  use_dropout_lstm=False, temperature=1,
)  # fmt: skip
_GATES = ("decoder_W", "decoder_U", "decoder_b", "decoder_Wc")


def is_arctic(shapes: Mapping[str, tuple[int, ...]]) -> bool:
  return {"Wemb", "decoder_Wc_att", "ff_logit_lstm_W"} <= shapes.keys()


def read_options(path: pathlib.Path) -> dict[str, Any]:
  """The options that stand beside the parameters, a pickle of a dict; nothing of it is run.

  Raises:
    UserError: where there is none, or something else in it.
  """
  beside = path.with_name(f"{path.name}.pkl")
  if beside.exists():
    check_ordinary(beside)
  try:
    with open(beside, "rb") as f:
      found = pickles.read(f, lambda name: False, lambda what, arguments: None)
  except OSError as e:
    raise UserError(f"{path} needs its options: cannot read {beside}: {e.strerror}") from e
  except pickles.Refused as e:
    raise UserError(f"{beside} holds {e}, which is no option; nothing of it was run") from e
  if not isinstance(found, dict):
    raise UserError(f"{beside} holds no options")
  return found


def adapted(file: TensorFile, options: Mapping[str, Any]) -> TensorFile:
  """The tensors with vlx's order of gates and scale of dropout."""
  halved = {"ff_logit_lstm_W", "ff_logit_W"} if options.get("use_dropout") else set()
  if halved and (layers := options["n_layers_init"]) > 1:
    halved |= {"ff_state_W", "ff_memory_W", *(f"ff_init_{i}_W" for i in range(2, layers))}

  def fetch(name):
    tensor = file.fetch(name)
    if name in _GATES:
      i, f, o, g = np.split(tensor, 4, axis=-1)
      return np.concatenate([i, f, g, o], axis=-1)
    return tensor * np.float32(0.5) if name in halved else tensor

  return TensorFile(file.shapes, fetch)


def layout_of(options: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> CheckpointMap:
  """The system of a file, with the tower that its annotations came from.

  Raises:
    UserError: for an option that is missing or absurd, or that vlx's decoder has no place for.
  """
  for name, wanted in _FIXED.items():
    fields.must_be(options, name, wanted)
  features, hidden = fields.shape(shapes, "ff_state_W", 2)
  words, embedding = fields.shape(shapes, "Wemb", 2)
  fields.must_be(options, "ctx_dim", features)
  fields.divides("ctx_dim", features, "the widths of VGG-19, in units of its first,", 8)
  annotation_layers = _layers(options, "n_layers_att", shapes, r"decoder_W_att_(\d+)$")
  init_layers = _layers(options, "n_layers_init", shapes, r"ff_init_(\d+)_W$")
  gated = bool(options.get("selector"))
  system = ShowAttendTell(
    VGGTower(CONVOLUTIONS[19], width=features // 8),
    vocab_size=words,
    embed_dim=embedding,
    hidden_dim=hidden,
    attention_dim=features,
    selection=fields.one_of(options, "attn_type", {"deterministic": "soft", "stochastic": "hard"}),
    context_gate=gated,
    annotation_layers=annotation_layers,
    init_layers=init_layers,
    deep_output_tanh=True,
    zero_start=True,
    dropout=0.5 if options.get("use_dropout") else 0.0,
    start_id=0,
    end_id=0,
    text_length=fields.positive_int(options, "maxlen", 100, most=10**5) + 2,
  )
  return CheckpointMap(system, rows(annotation_layers, init_layers, gated))


def _layers(options, name: str, shapes, pattern: str) -> int:
  """As many as the option says, which are one more than the file has numbered."""
  said, found = fields.positive_int(options, name), 1 + fields.count(shapes, pattern, least=0)
  if said != found:
    raise UserError(f"the options say that {name} is {said}, but the file has {found} such layers")
  return found


def rows(annotation_layers: int, init_layers: int, gated: bool) -> list[Row]:
  """Rows for the decoder, as `adapted` gives its tensors."""
  layers = {
    "ff_state": "init_state",
    "ff_memory": "init_memory",
    "ff_logit_lstm": "output_hidden",
    "ff_logit_ctx": "output_context",
    "ff_logit": "head",
    **{f"ff_init_{i}": f"init_hidden_{i - 1}" for i in range(1, init_layers)},
  }
  table = [
    ("Wemb", "word_embedding/embedding"),
    ("decoder_W", "lstm/input/kernel"),
    ("decoder_b", "lstm/input/bias"),
    ("decoder_U", "lstm/recurrent/kernel"),
    ("decoder_Wc", "context_gates/kernel"),
    ("decoder_Wc_att", "annotation_keys_0/kernel"),
    ("decoder_b_att", "annotation_keys_0/bias"),
    ("decoder_Wd_att", "query/kernel"),
    ("decoder_U_att", "score", ("d 1 -> d", {})),
  ]
  for public, ours in layers.items():
    table += [(f"{public}_W", f"{ours}/kernel"), (f"{public}_b", f"{ours}/bias")]
  for i in range(1, annotation_layers):
    ours = f"annotation_keys_{i}"
    table += [(f"decoder_W_att_{i}", f"{ours}/kernel"), (f"decoder_b_att_{i}", f"{ours}/bias")]
  if gated:
    table += [("decoder_W_sel", "gate/kernel"), ("decoder_b_sel", "gate/bias", (" -> 1", {}))]
  return [
    *(Row(public, f"params/{ours}", *pattern) for public, ours, *pattern in table),
    Row("decoder_c_tt", None),
    Row("history_errs", None),  # of training
  ]


def preprocess(system: ShowAttendTell, config: Mapping | None = None) -> str:
  """Of torchvision's VGG-19; the authors' own came from Caffe, with other weights."""
  del system, config
  return torchvision_ops(*IMAGENET)
