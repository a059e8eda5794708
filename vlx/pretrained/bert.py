"""BERT's public files: what Hugging Face's `BertForPreTraining`, `BertForMaskedLM` and `BertModel`
save, and Google's own.

Which heads there are, and whether there is a pooler, is what a file's names say: of the most used
one, bert-base-uncased, the config says `BertForMaskedLM` and the file has all of them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from vlx.models.pretraining.bert import BERT, BERTEncoder, MaskedLanguageModel
from vlx.pretrained import fields
from vlx.pretrained.tables import CheckpointMap, Row

# Files from before 2019.
ALIASES = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))

# Torch pickles hold the tied decoder beside what it is tied to.
COPIES = {
  "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
  "cls.predictions.decoder.bias": "cls.predictions.bias",
}

_DENSE = ("o i -> i o", {})


def tower_rows(
  num_heads: int, public: str = "", name: str = "params", *, pooler: bool = True
) -> list[Row]:
  """Rows for `BertModel` and `vlx.models.pretraining.bert.BERT`; `public.` and `name/` stand before
  their names.
  """
  kernel, bias = ("(h e) d -> d h e", {"h": num_heads}), ("(h e) -> h e", {"h": num_heads})
  out = ("d (h e) -> h e d", {"h": num_heads})
  layer, block = "encoder.layer.{layer}", "encoder/blocks"
  table = [
    ("embeddings.word_embeddings.weight", "word_embedding/embedding"),
    ("embeddings.position_embeddings.weight", "position_embedding"),
    ("embeddings.token_type_embeddings.weight", "segment_embedding/embedding"),
    ("embeddings.LayerNorm.weight", "embedding_norm/scale"),
    ("embeddings.LayerNorm.bias", "embedding_norm/bias"),
    (f"{layer}.attention.self.query.weight", f"{block}/attention/query/kernel", kernel),
    (f"{layer}.attention.self.query.bias", f"{block}/attention/query/bias", bias),
    (f"{layer}.attention.self.key.weight", f"{block}/attention/key/kernel", kernel),
    (f"{layer}.attention.self.key.bias", f"{block}/attention/key/bias", bias),
    (f"{layer}.attention.self.value.weight", f"{block}/attention/value/kernel", kernel),
    (f"{layer}.attention.self.value.bias", f"{block}/attention/value/bias", bias),
    (f"{layer}.attention.output.dense.weight", f"{block}/attention/out/kernel", out),
    (f"{layer}.attention.output.dense.bias", f"{block}/attention/out/bias"),
    (f"{layer}.attention.output.LayerNorm.weight", f"{block}/attention_norm/scale"),
    (f"{layer}.attention.output.LayerNorm.bias", f"{block}/attention_norm/bias"),
    (f"{layer}.intermediate.dense.weight", f"{block}/mlp/fc1/kernel", _DENSE),
    (f"{layer}.intermediate.dense.bias", f"{block}/mlp/fc1/bias"),
    (f"{layer}.output.dense.weight", f"{block}/mlp/fc2/kernel", _DENSE),
    (f"{layer}.output.dense.bias", f"{block}/mlp/fc2/bias"),
    (f"{layer}.output.LayerNorm.weight", f"{block}/mlp_norm/scale"),
    (f"{layer}.output.LayerNorm.bias", f"{block}/mlp_norm/bias"),
  ]
  if pooler:
    table += [
      ("pooler.dense.weight", "pooler/kernel", _DENSE),
      ("pooler.dense.bias", "pooler/bias"),
    ]
  public = f"{public}." if public else ""
  return [
    *(Row(public + theirs, f"{name}/{ours}", *pattern) for theirs, ours, *pattern in table),
    Row(f"{public}embeddings.position_ids", None),  # the constant 0, 1, 2, …
  ]


def rows(num_heads: int, *, pooler: bool = True, next_sentence: bool = True) -> list[Row]:
  """Rows for `BertForPreTraining` and `vlx.models.pretraining.bert.BERTPretraining`, or without
  what `BertForMaskedLM` lacks.
  """
  words = [
    *tower_rows(num_heads, "bert", "params/tower", pooler=pooler),
    Row("cls.predictions.transform.dense.weight", "params/word_head/transform/kernel", _DENSE),
    Row("cls.predictions.transform.dense.bias", "params/word_head/transform/bias"),
    Row("cls.predictions.transform.LayerNorm.weight", "params/word_head/norm/scale"),
    Row("cls.predictions.transform.LayerNorm.bias", "params/word_head/norm/bias"),
    Row("cls.predictions.bias", "params/word_bias"),
  ]
  if not next_sentence:
    return words
  return [
    *words,
    Row("cls.seq_relationship.weight", "params/next_sentence_head/kernel", _DENSE),
    Row("cls.seq_relationship.bias", "params/next_sentence_head/bias"),
  ]


def google_rows(
  num_heads: int, *, tower: str, pooler: bool, words: bool, next_sentence: bool
) -> list[Row]:
  """Rows for Google's files (google-research/bert), whose kernels lie as vlx's do.

  Args:
    num_heads: of the attention.
    tower: the path of the encoder's variables.
    pooler: whether it has one.
    words: whether there is the head of masked words.
    next_sentence: whether there is that of the next sentence.
  """
  heads = {"h": num_heads}
  kernel, bias = ("d (h e) -> d h e", heads), ("(h e) -> h e", heads)
  out = ("(h e) d -> h e d", heads)
  layer, block = "bert/encoder/layer_{layer}", f"{tower}/encoder/blocks"
  norm = lambda theirs, ours: [
    (f"{theirs}/LayerNorm/gamma", f"{ours}/scale"),
    (f"{theirs}/LayerNorm/beta", f"{ours}/bias"),
  ]
  dense = lambda theirs, ours: [(f"{theirs}/{x}", f"{ours}/{x}") for x in ("kernel", "bias")]
  table = [
    ("bert/embeddings/word_embeddings", f"{tower}/word_embedding/embedding"),
    ("bert/embeddings/position_embeddings", f"{tower}/position_embedding"),
    ("bert/embeddings/token_type_embeddings", f"{tower}/segment_embedding/embedding"),
    *norm("bert/embeddings", f"{tower}/embedding_norm"),
    (f"{layer}/attention/output/dense/kernel", f"{block}/attention/out/kernel", out),
    (f"{layer}/attention/output/dense/bias", f"{block}/attention/out/bias"),
    *norm(f"{layer}/attention/output", f"{block}/attention_norm"),
    *dense(f"{layer}/intermediate/dense", f"{block}/mlp/fc1"),
    *dense(f"{layer}/output/dense", f"{block}/mlp/fc2"),
    *norm(f"{layer}/output", f"{block}/mlp_norm"),
  ]
  for name in ("query", "key", "value"):
    theirs, ours = f"{layer}/attention/self/{name}", f"{block}/attention/{name}"
    table += [
      (f"{theirs}/kernel", f"{ours}/kernel", kernel),
      (f"{theirs}/bias", f"{ours}/bias", bias),
    ]
  if pooler:
    table += dense("bert/pooler/dense", f"{tower}/pooler")
  if words:
    table += dense("cls/predictions/transform/dense", "params/word_head/transform")
    table += norm("cls/predictions/transform", "params/word_head/norm")
    table += [("cls/predictions/output_bias", "params/word_bias")]
  if next_sentence:
    head = "params/next_sentence_head"
    table += [
      ("cls/seq_relationship/output_weights", f"{head}/kernel", _DENSE),
      ("cls/seq_relationship/output_bias", f"{head}/bias"),
    ]
  return [Row(theirs, ours, *pattern) for theirs, ours, *pattern in table]


def from_google(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> CheckpointMap:
  """Reads a `bert_config.json`, and the names beside it, which say what heads there are.

  Its "gelu" is the tanh approximation, as in Google's code.

  Raises:
    UserError: for a missing or absurd field.
  """
  tower = _tower(config).clone(
    activation=fields.one_of(config, "hidden_act", {"gelu": "gelu_tanh"})
  )
  system = _of_heads(tower, [name.replace("/", ".") for name in shapes])
  words = isinstance(system, MaskedLanguageModel)
  table = google_rows(
    tower.num_heads,
    tower="params/tower" if words else "params",
    pooler=system.tower.has_pooler,
    words=words,
    next_sentence=words and system.next_sentence,
  )
  return CheckpointMap(system, table)


def of_training(name: str) -> bool:
  """Whether a tensor in Google's files is the optimizer's."""
  return name == "global_step" or name.endswith(("/adam_m", "/adam_v"))


def from_hugging_face(
  config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> CheckpointMap:
  """Reads a `config.json` with the model type "bert".

  Args:
    config: what lies in it.
    shapes: of the tensors in the file beside it, whose names say which heads there are; without,
      all of them, or none where the config's architecture is `BertModel`.

  Raises:
    UserError: for a missing or absurd field.
  """
  fields.must_be(config, "position_embedding_type", "absolute")
  fields.must_be(config, "is_decoder", False)
  tower = _tower(config)
  if shapes is None:
    headless = config.get("architectures") == ["BertModel"]
    return layout_of(BERTEncoder(tower) if headless else MaskedLanguageModel(tower))
  return layout_of(_of_heads(tower, shapes))


def _tower(config: Mapping[str, Any]) -> BERT:
  width, heads = (
    fields.positive_int(config, name) for name in ("hidden_size", "num_attention_heads")
  )
  fields.divides("hidden_size", width, "num_attention_heads", heads)
  return BERT(
    vocab_size=fields.positive_int(config, "vocab_size"),
    context_length=fields.length(config, "max_position_embeddings"),
    width=width,
    depth=fields.layers(config, "num_hidden_layers"),
    num_heads=heads,
    mlp_dim=fields.positive_int(config, "intermediate_size"),
    num_segments=fields.positive_int(config, "type_vocab_size", 2),
    activation=fields.one_of(config, "hidden_act", fields.ACTIVATIONS),
    layer_norm_epsilon=fields.epsilon(config, "layer_norm_eps", 1e-12),
  )


def _of_heads(tower: BERT, names: Iterable[str]) -> MaskedLanguageModel | BERTEncoder:
  """The system of a file with tensors of these names."""
  has = lambda part: any(name.startswith(part) for name in names)
  # A next sentence is told by what is pooled: a file that has the one without the other lacks it.
  sentence = has("cls.seq_relationship.")
  tower = tower.clone(has_pooler=sentence or has("bert.pooler.") or has("pooler."))
  if has("cls.predictions."):
    return MaskedLanguageModel(tower, next_sentence=sentence)
  return BERTEncoder(tower)


def layout_of(system: MaskedLanguageModel | BERTEncoder) -> CheckpointMap:
  """The table for a system."""
  heads, pooler = system.tower.num_heads, system.tower.has_pooler
  if isinstance(system, BERTEncoder):
    # Some such files were cut out of larger ones and kept the names.
    aliases = (*ALIASES, (r"^bert\.", ""))
    return CheckpointMap(system, tower_rows(heads, pooler=pooler), aliases)
  table = rows(heads, pooler=pooler, next_sentence=system.next_sentence)
  return CheckpointMap(system, table, ALIASES, COPIES)


def _architecture(system) -> str:
  if isinstance(system, BERTEncoder):
    return "BertModel"
  return "BertForPreTraining" if system.next_sentence else "BertForMaskedLM"


def to_hugging_face(
  system: MaskedLanguageModel | BERTEncoder,
) -> tuple[dict[str, Any], CheckpointMap]:
  """The `config.json` and the table that `BertForPreTraining`, `BertForMaskedLM` or `BertModel`
  loads; a `BertModel` without a pooler with `add_pooling_layer=False`.
  """
  tower = system.tower
  config = dict(
    architectures=[_architecture(system)],
    model_type="bert",
    vocab_size=tower.vocab_size,
    max_position_embeddings=tower.context_length,
    hidden_size=tower.width,
    num_hidden_layers=tower.depth,
    num_attention_heads=tower.num_heads,
    intermediate_size=tower.mlp_dim,
    type_vocab_size=tower.num_segments,
    hidden_act=fields.public_activation(tower.activation),
    layer_norm_eps=tower.layer_norm_epsilon,
  )
  return config, layout_of(system)


def preprocess(system, config: Mapping | None = None) -> str:
  """An encoder of texts sees no images."""
  del system, config
  return ""
