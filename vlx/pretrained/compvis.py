"""Files of the authors' code, known by their names and shapes: Stable Diffusion 1 and the text LDM in one file each, LDM's
autoencoders, and the released networks of ADM.

What shapes do not say (heads, the schedule, the size of images) is that of the published models. Stable Diffusion 2, and
LDMs of classes or of nothing, are read from diffusers' folders.
"""

import re
from collections.abc import Mapping

from vlx.core.errors import UserError
from vlx.inference.diffusion import Process
from vlx.models.contrastive.clip import CLIPTextEncoder, TextTransformer
from vlx.models.generation.autoencoder import KLAutoencoder, VQAutoencoder
from vlx.models.generation.ddpm import DDPM
from vlx.models.generation.latent_diffusion import LatentDiffusion
from vlx.models.layers.unet import UNet
from vlx.pretrained import clip, fields, ldm_bert, unet
from vlx.pretrained.formats import TensorFile
from vlx.pretrained.tables import CheckpointMap

Shapes = Mapping[str, tuple[int, ...]]

NETWORK, AUTOENCODER, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
AVERAGE = "model_ema."
# Of an autoencoder; beside it stand what its loss has, and constants.
_HALVES = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.embedding.")
_CLIP = f"{TEXT}transformer.text_model"
# The text LDM's encoder is x-transformers': each layer is two there, a norm and what follows.
_BERT = {
  0: {"0": "self_attn_layer_norm", "1.to_q": "self_attn.q_proj", "1.to_k": "self_attn.k_proj"}
  | {"1.to_v": "self_attn.v_proj", "1.to_out": "self_attn.out_proj"},
  1: {"0": "final_layer_norm", "1.net.0.0": "fc1", "1.net.2": "fc2"},
}
_BERT_ENDS = {
  "token_emb.weight": "embed_tokens.weight",
  "pos_emb.emb.weight": "embed_positions.weight",
  "norm.weight": "layer_norm.weight",
  "norm.bias": "layer_norm.bias",
}
# (width, multipliers, blocks) of ADM's networks → the side of their images, their heads, their schedule.
ADM = {
  (192, (1, 2, 3, 4), 3): (64, dict(head_dim=64), "cosine"),
  (256, (1, 1, 2, 3, 4), 2): (128, dict(num_heads=4), "linear"),
  (256, (1, 1, 2, 2, 4, 4), 2): (256, dict(head_dim=64), "linear"),
}
# (width, multipliers) of LDMs of texts → their heads, the ends of their schedule.
LDM = {
  (320, (1, 2, 4, 4)): (dict(num_heads=8), (0.00085, 0.012)),
  (192, (1, 2, 3, 5)): (dict(head_dim=32), (0.0015, 0.0195)),
}
# Stable Diffusion pads a text with its end, the text LDM with BERT's padding.
_EMPTY_CLIP = (49_406, *[49_407] * 76)
_EMPTY_BERT = (101, 102, *[0] * 75)


def adapted(file: TensorFile) -> TensorFile | None:
  """What vlx reads of a file, by names that the tables have; None for another's file.

  Of a network it is the moving average, where the file has one.
  """
  if any(name.startswith(NETWORK) for name in file.shapes):
    names = dict(_pipeline_names(file.shapes))
  elif {"encoder.conv_in.weight", "quant_conv.weight"} <= file.shapes.keys():
    names = {name: name for name in file.shapes if name.startswith(_HALVES)}
  elif {"input_blocks.0.0.weight", "time_embed.0.weight"} <= file.shapes.keys():
    names = {name: name for name in file.shapes}
  else:
    return None
  shapes = {name: file.shapes[there] for name, there in names.items()}
  return TensorFile(shapes, lambda name: file.fetch(names[name]), file.metadata)


def _pipeline_names(shapes: Shapes):
  """(name in vlx's tables, name in the file) of each tensor that is read."""
  for name in shapes:
    if name.startswith(NETWORK):
      average = AVERAGE + name.removeprefix("model.").replace(".", "")
      yield name, average if average in shapes else name
    elif name.startswith(tuple(AUTOENCODER + half for half in _HALVES)) or name.startswith(_CLIP):
      yield name, name
    elif name.startswith(f"{TEXT}transformer."):
      if known := _bert_name(name.removeprefix(f"{TEXT}transformer.")):
        yield f"bert.model.{known}", name


def _bert_name(name: str) -> str | None:
  if match := re.fullmatch(r"attn_layers\.layers\.(\d{1,4})\.(.+)\.(weight|bias)", name):
    layer, half = divmod(int(match[1]), 2)
    return f"layers.{layer}.{_BERT[half].get(match[2], match[2])}.{match[3]}"
  return _BERT_ENDS.get(name)


def layout_of(shapes: Shapes) -> CheckpointMap:
  """Of an `adapted` file.

  Raises:
    UserError: for a network of a form that shapes do not tell.
  """
  if "input_blocks.0.0.weight" in shapes:
    return _adm(shapes)
  if "quant_conv.weight" in shapes:
    system = autoencoder(shapes, "", 256)
    return CheckpointMap(system, unet.autoencoder_rows(system, diffusers=False))
  return _latent_diffusion(shapes)


def _adm(shapes: Shapes) -> CheckpointMap:
  network, _ = _unet(shapes, "")
  key = (network["width"], network["multipliers"], network["num_blocks"])
  if key not in ADM or fields.shape(shapes, "input_blocks.0.0.weight", 4)[1] != 3:
    raise UserError(
      f"a network of guided-diffusion of {network['width']} channels times {network['multipliers']}: vlx knows"
      " the released ones for images of 64, 128 and 256 pixels, which are no upsamplers"
    )
  side, heads, schedule = ADM[key]
  made = UNet(**network, **heads)
  system = DDPM(
    unet=made,
    image_size=side,
    num_classes=made.num_classes,
    condition_dropout=0.0,
    process=Process(schedule=schedule, learned_variance=made.channels == 6),
  )
  return CheckpointMap(system, unet.original_rows(made))


def _latent_diffusion(shapes: Shapes) -> CheckpointMap:
  network, linear = _unet(shapes, NETWORK)
  bert = "bert.model.embed_tokens.weight" in shapes
  if not bert and f"{_CLIP}.final_layer_norm.weight" not in shapes:
    raise UserError(
      "a latent diffusion without CLIP's or the text LDM's encoder; vlx reads its folder of diffusers"
    )
  if (key := (network["width"], network["multipliers"])) not in LDM:
    raise UserError(
      f"a latent diffusion of {key[0]} channels times {key[1]}, which is none that was released"
    )
  heads, (beta_start, beta_end) = LDM[key]
  text = (_bert if bert else _clip_text)(shapes)
  made = UNet(**network, **heads)
  vae = autoencoder(shapes, AUTOENCODER, 256 if bert else 512)
  system = LatentDiffusion(
    unet=made,
    image_size=vae.image_size,
    process=Process("scaled_linear", beta_start=beta_start, beta_end=beta_end, ends_clean=False),
    text_encoder=text,
    text_length=text.text_length,
    empty_text=_EMPTY_BERT if bert else _EMPTY_CLIP,
    autoencoder=vae,
    latent_scale=0.18215 if isinstance(vae, KLAutoencoder) else 1.0,
  )
  reader, public = (ldm_bert, "bert.") if bert else (clip, _CLIP)
  return CheckpointMap(
    system,
    [
      *unet.original_rows(made, linear=linear, public=NETWORK),
      *unet.autoencoder_rows(vae, diffusers=False, ours="autoencoder/", public=AUTOENCODER),
      *reader.text_rows(text.text.num_heads, ours="text_encoder/text", public=public),
    ],
  )


def _bert(shapes: Shapes) -> CLIPTextEncoder:
  vocab, width = fields.shape(shapes, "bert.model.embed_tokens.weight", 2)
  inner = fields.shape(shapes, "bert.model.layers.0.self_attn.q_proj.weight", 2)[0]
  return ldm_bert.text_encoder(
    dict(
      vocab_size=vocab,
      d_model=width,
      max_position_embeddings=fields.positions(shapes, "bert.model.embed_positions.weight", 2),
      encoder_layers=fields.count(shapes, r"bert\.model\.layers\.(\d+)\."),
      encoder_attention_heads=8,
      head_dim=inner // 8,
      encoder_ffn_dim=fields.shape(shapes, "bert.model.layers.0.fc1.weight", 2)[0],
    )
  )


def _clip_text(shapes: Shapes) -> CLIPTextEncoder:
  vocab, width = fields.shape(shapes, f"{_CLIP}.embeddings.token_embedding.weight", 2)
  return CLIPTextEncoder(
    TextTransformer(
      vocab_size=vocab,
      context_length=fields.positions(shapes, f"{_CLIP}.embeddings.position_embedding.weight", 2),
      width=width,
      depth=fields.count(shapes, rf"{re.escape(_CLIP)}\.encoder\.layers\.(\d+)\."),
      num_heads=max(1, width // 64),
      mlp_dim=fields.shape(shapes, f"{_CLIP}.encoder.layers.0.mlp.fc1.weight", 2)[0],
    )
  )


def _unet(shapes: Shapes, prefix: str) -> tuple[dict, bool]:
  """(fields of a UNet but for its heads, whether its transformers' ends are dense) by the shapes below a prefix."""
  width = fields.shape(shapes, f"{prefix}input_blocks.0.0.weight", 4)[0]
  start = re.escape(f"{prefix}output_blocks.")
  outputs = fields.count(shapes, rf"{start}(\d+)\.")
  has = lambda pattern: any(re.match(re.escape(prefix) + pattern, name) for name in shapes)
  # The last block of a level doubles the sides, but for the largest level's.
  ends = [
    i for i in range(outputs) if has(rf"output_blocks\.{i}\.[12]\.(conv|in_layers\.0)\.weight")
  ]
  per_level = ends[0] + 1 if ends else outputs
  levels = outputs // per_level
  if outputs != levels * per_level or levels > fields.MAX_STAGES or per_level < 2:
    raise UserError(f"the network has {outputs} blocks on its way out, of which {ends} end levels")
  multipliers, attention_at = [], []
  for level in range(levels):
    first = f"output_blocks.{(levels - 1 - level) * per_level}"
    out = fields.shape(shapes, f"{prefix}{first}.0.out_layers.3.weight", 4)[0]
    multipliers.append(_times(out, width))
    if has(rf"{re.escape(first)}\.1\.(qkv|proj_in)\.weight"):
      attention_at.append(2**level)
  first = f"{prefix}input_blocks.1.0."
  proj = f"{prefix}middle_block.1.proj_in.weight"
  network = dict(
    channels=fields.shape(shapes, f"{prefix}out.2.weight", 4)[0],
    width=width,
    multipliers=tuple(multipliers),
    num_blocks=per_level - 1,
    attention_at=tuple(attention_at),
    transformer_depth=fields.count(
      shapes, re.escape(f"{prefix}middle_block.1.transformer_blocks.") + r"(\d+)\.", least=0
    ),
    scale_shift=fields.shape(shapes, f"{first}emb_layers.1.weight", 2)[0]
    == 2 * fields.shape(shapes, f"{first}out_layers.3.weight", 4)[0],
    residual_resampling=has(r"output_blocks\.\d+\.[12]\.in_layers\.0\.weight"),
    num_classes=shapes.get(f"{prefix}label_emb.weight", (0,))[0],
  )
  return network, len(shapes.get(proj, ())) == 2


def _times(out: int, width: int) -> int:
  if out % width:
    raise UserError(f"a level has {out} channels; vlx takes multiples of the first layer's {width}")
  return out // width


def autoencoder(shapes: Shapes, prefix: str, image_size: int) -> KLAutoencoder | VQAutoencoder:
  """By the shapes below a prefix; what it learned of images of 256 pixels fits those of others."""
  there = f"{prefix}encoder"
  width = fields.shape(shapes, f"{there}.conv_in.weight", 4)[0]
  levels = fields.count(
    shapes, rf"{re.escape(there)}\.down\.(\d+)\.block\.", most=fields.MAX_STAGES
  )
  block = lambda i: fields.shape(shapes, f"{there}.down.{i}.block.0.conv2.weight", 4)
  shared = dict(
    image_size=image_size,
    width=width,
    multipliers=tuple(_times(block(i)[0], width) for i in range(levels)),
    num_blocks=fields.count(shapes, rf"{re.escape(there)}\.down\.0\.block\.(\d+)\."),
    attention_at=tuple(
      2**i for i in range(levels) if f"{there}.down.{i}.attn.0.q.weight" in shapes
    ),
  )
  outs = fields.shape(shapes, f"{prefix}quant_conv.weight", 4)
  if f"{prefix}quantize.embedding.weight" in shapes:
    codes, dim = fields.shape(shapes, f"{prefix}quantize.embedding.weight", 2)
    return VQAutoencoder(num_codes=codes, latent_channels=dim, inner_channels=outs[1], **shared)
  return KLAutoencoder(latent_channels=outs[0] // 2, inner_channels=outs[1] // 2, **shared)
