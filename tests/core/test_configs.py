"""Every variant of every config builds: system, optimizer rules, partition rules, evaluators."""

import jax
import jax.numpy as jnp
import pytest

from vlx.core import config as configs
from vlx.core.config import load_config
from vlx.core.errors import UserError
from vlx.models.contrastive.clip import CLIP
from vlx.train import optimizer as optimizers
from vlx.core import partition

VARIANTS = [
    *(f"configs/clip.py:{v}" for v in ("smoke", "demo", "emoji", "scenes", "folder", "b32", "b16", "l14", "rn50")),
    "configs/clip.py:paper",
    *(
        f"configs/{system}.py:{v}" for system in ("show_and_tell", "show_attend_tell")
        for v in ("smoke", "emoji", "scenes", "ablation", "flickr8k", "coco", "finetune", "paper")
    ),
    *(f"configs/show_attend_tell.py:{v}" for v in ("hard", "coco_hard")),
    *(f"configs/show_and_tell.py:{v}" for v in ("language_model", "beams")),
    *(f"configs/vit.py:{v}" for v in ("smoke", "emoji", "emoji_cnn", "groups", "tones", "objects")),
    *(f"configs/vit.py:{v}" for v in ("b16", "l16", "h14", "paper")),
    *(f"configs/{c}.py:{v}" for c in ("vqvae", "dvae") for v in ("smoke", "emoji", "ablation", "paper")),
    *(f"configs/dalle.py:{v}" for v in ("smoke", "emoji", "judged", "ablation", "paper")),
]


def batch_of(config):
  model, shape = config.model, jax.ShapeDtypeStruct
  if isinstance(model.get("tokenizer"), str):  # the pictures are those of its own config
    size = load_config(model.tokenizer).model.image_size
  else:
    tower = model.get("image") or model.get("encoder") or model.get("tower") or model
    size = tower.get("image_size", 48)
  text = model.get("text") or model
  length = text.get("context_length", 4)
  return {
      "image": shape((2, size, size, 3), jnp.float32), "label": shape((2,), jnp.int32),
      "text": shape((2, length), jnp.int32), "text_mask": shape((2, length), jnp.bool_),
  }


@pytest.mark.parametrize("path", VARIANTS)
def test_variant_builds(path):
  config = load_config(path)
  if config.model.get("tokenizer", "").startswith("runs/"):
    config.model.tokenizer = "configs/vqvae.py:emoji"
  system = configs.build_system(config)
  params = jax.eval_shape(system.init, jax.random.key(0), batch_of(config))["params"]
  optimizers.make(config.optim, config.steps, params)
  for name, i in zip(
      jax.tree.leaves(partition.names(params)),
      jax.tree.leaves(partition.match(config.partition, params, "partition")),
  ):
    leaf = params
    for key in name.split("/"):
      leaf = leaf[key]
    assert len(config.partition[i][1]) <= leaf.ndim, name
  for name, section in config.evaluators.items():
    fields = section.to_dict()
    configs.build(configs.import_path(fields.pop("type")), fields, f"evaluators.{name}")
  again = configs.from_json(configs.to_json(config))
  assert configs.to_json(again) == configs.to_json(config)
  # What a run folder's config.json gives is the same system.
  assert configs.build_system(again) == system


TOWER = dict(width=8, depth=1, num_heads=2, mlp_dim=8)
SECTION = dict(
    image=dict(image_size=8, patch_size=4, **TOWER),
    text=dict(vocab_size=9, context_length=4, **TOWER), embed_dim=3,
)


@pytest.mark.parametrize("section,message", [
    ({**SECTION, "embed_dims": 3}, "CLIP has no field model.embed_dims: did you mean 'embed_dim'"),
    ({**SECTION, "text": {**SECTION["text"], "dept": 3}}, "no field model.text.dept: did you mean 'depth'"),
    ({k: v for k, v in SECTION.items() if k != "embed_dim"}, "CLIP needs model.embed_dim"),
    ({**SECTION, "loss_type": "hinge"}, "loss_type is 'softmax' or 'sigmoid', not 'hinge'"),
])
def test_a_section_that_does_not_fit_is_told(section, message):
  with pytest.raises(UserError, match=message):
    configs.build(CLIP, section, "model")


def test_differences_name_every_value():
  old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}
  assert configs.differences(old, new) == ["a.c: 2 → 5", "d: 3 → nothing", "e: nothing → 4"]


def test_a_path_that_cannot_be_imported_is_told():
  for path in ("vlx.models.nothing.X", "vlx.models.contrastive.clip.CLAP", "CLIP"):
    with pytest.raises(UserError, match="cannot be imported"):
      configs.import_path(path)
