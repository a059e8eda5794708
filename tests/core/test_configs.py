"""Every variant of every config builds: system, optimizer rules, partition rules, evaluators."""

import importlib
import json
import pathlib
import re

import jax
import pytest

from vlx.compile.plan import Plan
from vlx.core import capabilities, partition, trust
from vlx.core import config as configs
from vlx.core.config import load_config
from vlx.core.errors import UserError
from vlx.core.system import Trains, flatten
from vlx.evaluate import runner
from vlx.models.contrastive.clip import CLIP

FILES = sorted(path.stem for path in pathlib.Path("configs").glob("*.py"))
VARIANTS = [
  f"configs/{name}.py:{variant}"
  for name in FILES
  for variant in importlib.import_module(f"configs.{name}").VARIANTS
]


RUNS = {
  "runs/show_and_tell": "configs/show_and_tell.py:scenes",
  "runs/vqvae_ablation": "configs/vqvae.py:ablation",
  "runs/vqvae": "configs/vqvae.py:emoji",
  "runs/autoencoder": "configs/autoencoder.py:emoji",
  "runs/clip_folder": "configs/clip.py:folder",
  "runs/clip": "configs/clip.py:demo",
  "runs/unclip_prior_folder": "configs/unclip_prior.py:folder",
  "runs/unclip_decoder_folder": "configs/unclip_decoder.py:folder",
  "runs/unclip_first_folder": "configs/unclip_upsampler.py:folder_first",
  "runs/unclip_second_folder": "configs/unclip_upsampler.py:folder",
  "runs/unclip_prior": "configs/unclip_prior.py:diffusion",
  "runs/unclip_decoder": "configs/unclip_decoder.py:emoji",
  "runs/unclip_first": "configs/unclip_upsampler.py:emoji_first",
  "runs/unclip_second": "configs/unclip_upsampler.py:emoji_second",
}


def resolved(config):
  """With what stands for the runs that its parts name."""
  with config.unlocked():
    config.model = _named(config.model.to_dict())
  return config


def _named(section):
  """The section of a system, or of a part, its own parts by their configs."""
  if configs.is_part(section) and "system" not in section:
    path = next(path for run, path in RUNS.items() if section["source"].startswith(run))
    section = configs.part_from(path)
  return {
    field: _named(value) if configs.is_part(value) else value for field, value in section.items()
  }


@pytest.mark.parametrize("path", VARIANTS)
def test_variant_builds(path):
  config = resolved(load_config(path))
  run = Plan(config, pathlib.Path("nowhere"), tuple(jax.devices("cpu")))
  system, params = run.system, run.shapes["params"]
  assert all(path.startswith("vlx.") for path in trust.import_paths(config.to_dict()))
  assert capabilities.has(system, Trains) or not config.steps
  assert run.players or not config.steps  # rules and schedule fit
  for name, i in flatten(partition.match(config.partition, params, "partition")).items():
    leaf = flatten(params)[name]
    assert len(config.partition[i][1]) <= leaf.ndim, name
  sizes = re.findall(r"(?:resize|central_crop)\((\d+)", config.data.image_transform)
  assert system.inputs()["image"].shape[0] == int(sizes[-1])
  for name, section in config.evaluators.items():
    evaluator = runner.build(section.to_dict(), f"evaluators.{name}")
    capabilities.require(system, *evaluator.requires)
    assert all(way in ("higher", "lower") for way in evaluator.better.values())
  again = configs.from_json(configs.to_json(config))
  assert configs.to_json(again) == configs.to_json(config)
  # What a run folder's config.json gives is the same system.
  assert configs.build_system(again) == system


@pytest.mark.parametrize("name", FILES)
def test_every_system_has_a_smoke_run_and_takes_peoples_own_folder(name):
  assert {"smoke", "folder"} <= set(importlib.import_module(f"configs.{name}").VARIANTS)
  assert load_config(f"configs/{name}.py:folder").data.source == "folder:."


TOWER = dict(width=8, depth=1, num_heads=2, mlp_dim=8)
SECTION = dict(
  image=dict(image_size=8, patch_size=4, **TOWER),
  text=dict(vocab_size=9, context_length=4, **TOWER),
  embed_dim=3,
)


@pytest.mark.parametrize(
  "section,message",
  [
    ({**SECTION, "embed_dims": 3}, "CLIP has no field model.embed_dims: did you mean 'embed_dim'"),
    (
      {**SECTION, "text": {**SECTION["text"], "dept": 3}},
      "no field model.text.dept: did you mean 'depth'",
    ),
    ({k: v for k, v in SECTION.items() if k != "embed_dim"}, "CLIP needs model.embed_dim"),
    ({**SECTION, "loss_type": "hinge"}, "loss_type is 'softmax' or 'sigmoid', not 'hinge'"),
  ],
)
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


def test_a_section_of_a_union_is_the_one_that_has_its_fields():
  from vlx.models.captioning.captioner import Encoder
  from vlx.models.vision.inception import GoogLeNetTower
  from vlx.models.vision.resnet import ResNetTower
  from vlx.models.vision.vgg import VGGTower

  kinds = configs._dataclasses(Encoder)
  for section, kind in (
    (dict(stage_sizes=(1,), bottleneck=False), ResNetTower),
    (dict(convolutions=(1, 1)), VGGTower),
    ({}, GoogLeNetTower),
    (dict(batch_norm=True), GoogLeNetTower),
  ):
    assert configs._choose(kinds, section) is kind
  with pytest.raises(
    UserError, match="VGGTower has no field model.encoder.widht: did you mean 'width'"
  ):
    configs.build(
      type(configs.build_system(load_config("configs/show_and_tell.py:smoke"))),
      dict(encoder=dict(convolutions=(1, 1), widht=3), vocab_size=9),
      "model",
    )


def test_a_folder_of_schema_1_says_the_same_in_todays_words(tmp_path):
  """What 4e68086 wrote for configs/vit.py:smoke."""
  old = {
    "system": "vlx.models.vision.vit.ViT",
    "init_from": [],
    "eval_every": 2,
    "seed": 0,
    "steps": 4,
    "log_every": 20,
    "model": {
      "num_classes": 10,
      "tower": dict(image_size=48, patch_size=8, width=32, depth=2, num_heads=2, mlp_dim=64),
    },
    "data": dict(
      source="tfds:emoji",
      split="train",
      batch_size=32,
      picture="",
      bad_records=100,
      workers=0,
      threads=1,
      ahead=4,
      preprocess='decode("RGBA")|resize(60)|cache|random_affine(48, 0.8, 1.2)|normalize|keep("image", "label")',
    ),
    "optim": dict(lr=1e-3, rules=[["(bias)$", {"weight_decay": 0.0}], [".*", {}]], accumulate=1),
    "mesh": dict(data=-1, fsdp=1, tensor=1),
    "partition": [[".*", []]],
    "checkpoint": dict(every=1000, keep=1, best=""),
    "baselines": {},
    "evaluators": {
      "classification": dict(
        type="vlx.evaluate.classification.Classification",
        splits=["concept"],
        batch_size=256,
        preprocess='decode|resize(48)|normalize|keep("image", "label")',
      )
    },
  }
  (tmp_path / "config.json").write_text(json.dumps(old))
  kept = configs.read(tmp_path)
  assert kept.schema == 1 and kept.resolved.data.image_transform == "decode|resize(48)|normalize"
  section = kept.resolved.evaluators.classification.to_dict()
  assert (
    section["type"] == "vlx.evaluate.tasks.classification.Classification" and section["every"] == 2
  )
  assert configs.build_system(kept.resolved).tower.width == 32
  configs.write(tmp_path / "new", kept)
  again = configs.read(tmp_path / "new")
  assert again.schema == 2 and configs.to_json(again.resolved) == configs.to_json(kept.resolved)
  for content, message in (({"schema": 3}, "has schema 3"), ({}, "names no system")):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
      configs.read(tmp_path)
