"""From a public CLIP and a public LLaMA to a conversation about an image, in two stages."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vlx
from tests.new_systems import harness, public
from tests.new_systems.llava.config import get_config
from vlx.core import config as configs
from vlx.core.errors import UserError
from vlx.models.language.llama import LanguageModel, LLaMA, published_size


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
  folder = tmp_path_factory.mktemp("llava")
  places = public.publish(folder)
  first = harness.exercise(get_config(*places), folder)
  second = harness.train(get_config(*places, str(first.workdir)), folder / "second", steps=3)
  return first, second


def test_the_projector_alone_learns_first(stages):
  first, _ = stages
  assert {path.split("/")[0] for path, one in first.learning.items() if not one.frozen} == {
    "hidden",
    "out",
  }
  frozen = [
    x.dtype for name, x in harness.last_state(first).items() if name.startswith("frozen/params")
  ]
  assert len(frozen) > 20 and set(map(str, frozen)) == {"bfloat16"}


def test_then_all_but_the_tower_from_where_the_first_stage_ended(stages):
  first, second = stages
  assert {path.split("/")[0] for path, one in second.learning.items() if not one.frozen} == {
    "hidden",
    "out",
    "language_model",
  }
  before, after = (vlx.load(run.workdir).variables["params"] for run in stages)
  assert str(after["language_model"]["final_norm"]["scale"].dtype) == "float32"
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(np.float32(a), b), before["tower"], after["tower"]
  )
  # Three steps of 1e-3 from there, not from what is drawn.
  gap = np.abs(before["hidden"]["kernel"] - after["hidden"]["kernel"]).max()
  assert 0 < gap < 5e-3
  results = json.loads((second.workdir / "results.json").read_text())["measures"]
  assert np.isfinite(results["loss/val/nats_per_token"])


def test_it_talks_about_an_image_in_several_turns(stages):
  model = vlx.load(stages[1].workdir)
  red, blue = (Image.new("RGB", (20, 30), color) for color in ("red", "blue"))
  answer, chat = model.chat("what color is the background ?", red, max_tokens=3)
  assert isinstance(answer, str) and len(chat.messages) == 2
  again, chat = model.chat("and now ?", history=chat, max_tokens=3)
  assert len(chat.messages) == 4 and chat.cache is not None
  # The image is seen: what is read of another one is not the same.
  system, variables = model.system.for_decoding(model.variables)
  ids = jnp.array([[5, 3, 3, 3, 3, 6, 7]], jnp.int32)
  logits = [
    system.extend_cache(
      variables,
      {
        "text": ids,
        "text_mask": jnp.ones_like(ids, bool),
        "image": jnp.asarray(model.prepare_images([image])),
      },
      system.empty_cache(1, 16),
    )[0]
    for image in (red, blue)
  ]
  assert np.abs(logits[0] - logits[1]).max() > 1e-4
  with pytest.raises(UserError, match="no room|to come"):
    model.chat("what ? " * 60, red)
  with pytest.raises(UserError, match="<image> in a message"):
    model.chat("what is an <image> ?", red)


@pytest.mark.slow
def test_it_compiles_for_a_pod(stages):
  assert harness.compiles_for_a_pod(stages[0].config)["bytes_per_device"]["frozen"] > 0


@pytest.mark.slow
def test_a_frozen_llama_2_of_7b_takes_its_shard_in_bf16(stages):
  config = stages[0].requested.copy_and_resolve_references().unlock()
  decoder = LLaMA(**published_size("2-7B"), remat=True, dtype="bfloat16")
  config.model.language_model = configs.part_of(LanguageModel(decoder))
  found = harness.compiles_for_a_pod(
    config, **{"mesh.data": 1, "mesh.fsdp": 16, "partition": ((r".*", "fsdp"),)}
  )
  # 6,738,415,616 parameters in 16 shards of 2 bytes, and the small tower.
  assert 0 <= found["bytes_per_device"]["frozen"] - 6_738_415_616 * 2 // 16 < 1e6
