"""Smoke runs of both captioners: they learn more than the words' frequencies, and describe a picture."""

import collections

import numpy as np
import pytest
from PIL import Image

from vlx import cli
from vlx.core.errors import UserError
from vlx.generate.captions import describe
from vlx.train import loop
from vlx.train.logging import read_metrics
from vlx.train.run import Run


@pytest.fixture(scope="module", params=["show_attend_tell"])
def trained(request, tmp_path_factory):
  config = configs.load_config(f"configs/{request.param}.py:smoke")
  config.update_from_flattened_dict({"evaluators.captions.splits": ()})  # has tests of its own
  run = Run(config, tmp_path_factory.mktemp("runs") / request.param)
  loop.train(run)
  return run


def test_the_loss_falls_below_the_entropy_of_single_words(trained):
  counts = collections.Counter()
  for text in trained.source("train").texts(("caption",)):
    ids, mask = trained.tokenizer.encode(text, 16)
    counts.update(ids[mask][1:].tolist())
  share = np.array(list(counts.values())) / sum(counts.values())
  entropy = -(share * np.log(share)).sum()
  losses = [line["train/nats_per_token"] for line in read_metrics(trained.workdir)]
  assert losses[0] > entropy > np.mean(losses[-5:])


def test_a_picture_is_described(trained, tmp_path):
  picture = tmp_path / "a picture.png"
  Image.new("RGBA", (50, 70), (200, 30, 30, 128)).save(picture)
  captions, sheet = describe(str(trained.workdir), str(picture), beam_size=4, max_length=6, count=3)
  assert len(captions) == 3 and all(isinstance(text, str) and score <= 0 for text, score in captions)
  sheet = trained.workdir / "samples" / "a picture_words.png"
  assert sheet.exists() == hasattr(trained.system, "attend")
  for path in (tmp_path / "missing.png", trained.workdir / "config.json"):
    with pytest.raises(UserError, match="cannot read the picture"):
      describe(str(trained.workdir), str(path))


def test_a_run_that_makes_no_captions_is_told(tmp_path):
  Run(configs.load_config("configs/vit.py:smoke"), tmp_path).save_config()
  with pytest.raises(UserError, match="holds a ViT, which makes no captions"):
    describe(str(tmp_path), "picture.png")
