"""Names of unCLIP's networks in diffusers' files, the form of Karlo (kakaobrain)."""

from collections.abc import Mapping

from vlx.core.errors import UserError
from vlx.models.contrastive.clip import CLIPTextTower
from vlx.models.generation.unclip import UnCLIP
from vlx.models.generation.unclip_decoder import DecoderNetwork, UnCLIPDecoder
from vlx.models.generation.unclip_prior import DiffusionPrior, PriorNetwork
from vlx.models.generation.unclip_upsampler import UnCLIPUpsampler
from vlx.pretrained import clip, diffusers_configs, fields, unet
from vlx.pretrained.tables import CheckpointMap, Row
from vlx.pretrained.torch_rows import dense, layer_norm, transformer_block


def prior(config: Mapping) -> PriorNetwork:
  """The network of a `config.json` of `PriorTransformer`."""
  for name, wanted in dict(
    additional_embeddings=4,
    time_embed_act_fn="silu",
    norm_in_type=None,
    embedding_proj_norm_type=None,
    encoder_hid_proj_type="linear",
    added_emb_type="prd",
    time_embed_dim=None,
    embedding_proj_dim=None,
    clip_embed_dim=None,
  ).items():
    fields.must_be(config, name, wanted)
  heads = fields.positive_int(config, "num_attention_heads", 32)
  head_dim = fields.positive_int(config, "attention_head_dim", 64)
  return PriorNetwork(
    dim=fields.positive_int(config, "embedding_dim", 768),
    text_length=fields.length(config, "num_embeddings", 77),
    width=heads * head_dim,
    depth=fields.layers(config, "num_layers", 20),
    num_heads=heads,
    mlp_dim=4 * heads * head_dim,
  )


def prior_rows(network: PriorNetwork, *, ours: str = "", public: str = "") -> list[Row]:
  """Of `PriorTransformer`.

  Args:
    network: the network.
    ours: before our paths, below "params".
    public: before the public names.
  """
  one, state = ("1 d -> d", {}), f"state/{ours}embeddings"
  named = dict(
    {"time_embedding.linear_1": "time1", "time_embedding.linear_2": "time2", "proj_in": "in"},
    embedding_proj="text",
    encoder_hidden_states_proj="tokens",
    proj_to_clip_embeddings="out",
  )
  return [
    *(row for theirs, mine in named.items() for row in dense(f"{public}{theirs}", f"{ours}{mine}")),
    Row(f"{public}positional_embedding", f"params/{ours}position_embedding", ("1 n d -> n d", {})),
    Row(f"{public}prd_embedding", f"params/{ours}query", ("1 1 d -> d", {})),
    *transformer_block(
      f"{public}transformer_blocks.{{layer}}",
      f"{ours}transformer/blocks",
      network.num_heads,
      norms=("norm1", "norm3"),
      attention=("attn1.to_q.", "attn1.to_k.", "attn1.to_v."),
      out="attn1.to_out.0",
      mlp=("ff.net.0.proj", "ff.net.2"),
    ),
    *layer_norm(f"{public}norm_out", f"{ours}final_norm"),
    Row(f"{public}clip_mean", f"{state}/mean", one),
    Row(f"{public}clip_std", f"{state}/deviation", one),
  ]


def decoder(config: Mapping, projections: Mapping) -> DecoderNetwork:
  """The network of the configs of `UNet2DConditionModel` and `UnCLIPTextProjModel`."""
  network = diffusers_configs.unclip_decoder(config)
  width = fields.positive_int(projections, "cross_attention_dim")
  fields.must_be(config, "cross_attention_dim", width)
  fields.must_be(projections, "time_embed_dim", 4 * network.width)
  extra = fields.positive_int(projections, "clip_extra_context_tokens", 4)
  return DecoderNetwork(network, width, extra)


def decoder_rows(network: DecoderNetwork, *, ours: str = "") -> list[Row]:
  """Of both, whose names have their part before them.

  Args:
    network: the network.
    ours: before our paths, below "params".
  """
  mine, theirs = f"{ours}projections", "text_proj"
  return [
    *unet.diffusers_rows(network.unet, ours=f"{ours}unet/", public="decoder."),
    Row(f"{theirs}.learned_classifier_free_guidance_embeddings", f"params/{mine}/nothing"),
    *dense(f"{theirs}.embedding_proj", f"{mine}/text"),
    *dense(f"{theirs}.clip_image_embeddings_project_to_time_embeddings", f"{mine}/image"),
    *dense(f"{theirs}.clip_extra_context_tokens_proj", f"{mine}/extra_tokens"),
    *dense(f"{theirs}.encoder_hidden_states_proj", f"{mine}/tokens"),
    *layer_norm(f"{theirs}.text_encoder_hidden_states_norm", f"{mine}/norm"),
  ]


def pipeline(
  configs: Mapping[str, Mapping], schedulers: Mapping[str, Mapping], empty: tuple[int, ...]
) -> CheckpointMap:
  """A whole `UnCLIPPipeline`: configs of its parts by their names, and of their schedulers.

  Prior and decoder have the text encoder each. `empty` are the ids of no text, without padding.
  """
  told = configs["text_encoder"]
  tower = CLIPTextTower(
    clip.text_encoder(told).text, fields.positive_int(told, "projection_dim", 512)
  )
  process = lambda name: diffusers_configs.process(schedulers[name])
  head = prior(configs["prior"])
  fields.must_be(configs["prior"], "embedding_dim", tower.embed_dim)
  network = decoder(configs["decoder"], configs["text_proj"])
  first, last = (
    diffusers_configs.unet_2d(configs[name]) for name in ("super_res_first", "super_res_last")
  )
  for name in ("super_res_first", "super_res_last"):
    fields.must_be(configs[name], "in_channels", 6)
  if first != last:
    raise UserError("super_res_last/config.json is of another network than super_res_first's")
  side = lambda name: fields.positive_int(configs[name], "sample_size", 64, most=fields.MAX_SIDE)
  low, high = side("decoder"), side("super_res_first")
  image_size = 224  # that its CLIP was trained with; no image is read here
  system = UnCLIP(
    prior=DiffusionPrior(
      clip=tower,
      network=head,
      image_size=image_size,
      process=process("prior"),
      scale=0.0,
      no_text=empty,
    ),
    decoder=UnCLIPDecoder(
      clip=tower,
      clip_size=image_size,
      unet=network.unet,
      image_size=low,
      process=process("decoder"),
      text_length=tower.text_length,
      context_width=network.width,
      normalised=False,
      extra_tokens=network.extra_tokens,
      no_text=empty,
    ),
    first=UnCLIPUpsampler(
      unet=first, image_size=high, low_size=low, process=process("super_res"), separate_last=True
    ),
  )
  return CheckpointMap(system, pipeline_rows(system, ("prior", "decoder")))


def pipeline_rows(system: UnCLIP, towers: tuple[str, ...]) -> list[Row]:
  """Of all parts, whose names stand before theirs; the text encoder is that of each of the parts `towers`."""
  heads, sizes = system.decoder.clip.text.num_heads, system.first.unet
  rows = [
    *prior_rows(system.prior.network, ours="prior/", public="prior."),
    *decoder_rows(system.decoder.network, ours="decoder/"),
    *unet.diffusers_rows(sizes, ours="first/first/", public="super_res_first."),
    *unet.diffusers_rows(sizes, ours="first/last/", public="super_res_last."),
  ]
  for owner in towers:
    ours = f"{owner}/clip"
    rows += clip.text_rows(heads, ours=f"{ours}/text", public="text_encoder.text_model")
    kernel = f"params/{ours}/text_projection/kernel"
    rows.append(Row("text_encoder.text_projection.weight", kernel, ("o i -> i o", {})))
  return rows
