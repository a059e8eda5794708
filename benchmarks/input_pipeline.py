"""Images per second of the input pipeline: decode, resize, crop, flip, normalise, tokenise.

  python -m benchmarks.input_pipeline --images=FOLDER                 # vlx, two workers
  python benchmarks/input_pipeline.py --images=FOLDER --side=torch    # torch DataLoader, two workers

The first makes the folder of 72x72 PNGs with captions (emoji's training split) where it is not
there; the second needs torch, torchvision, pillow and tokenizers, not vlx. Both make batches of 256
for `--seconds`, the tokenizer (the first's tokenizer.json) and the ops alike, and print the median
rate of five parts.
"""

import argparse
import json
import pathlib
import statistics
import time

BATCH, LENGTH, PARTS = 256, 24, 5
SIZE, CROP = 64, 56


def vlx_batches(folder: pathlib.Path, workers: int, threads: int):
  from absl import flags

  from vlx.data import sources
  from vlx.data.batches import Batches, Examples, iterate
  from vlx.data.tokenizers import trained as tokenizers
  from vlx.data.transforms import preprocess

  flags.FLAGS.mark_as_parsed()
  if not (folder / "metadata.jsonl").exists():
    emoji = sources.open_source("tfds:emoji", "train")
    folder.mkdir(parents=True)
    with open(folder / "metadata.jsonl", "w") as f:
      for i in range(len(emoji)):
        (folder / f"{i}.png").write_bytes(emoji[i]["image"])
        f.write(json.dumps({"file_name": f"{i}.png", "caption": emoji[i]["caption"]}) + "\n")
    tokenizers.train_bpe(emoji.texts(("caption",)), 6000).save(folder / "tokenizer.json")
  ops = preprocess.parse(
    f'decode|resize({SIZE})|random_crop({CROP})|flip_lr|normalize|tokenize("caption", {LENGTH})|'
    'keep("image", "text", "text_mask")',
    tokenizers.load(folder / "tokenizer.json"),
  )
  data = Batches(Examples(sources.open_source(f"folder:{folder}", "train"), ops), BATCH, 0)
  return iterate(data, 0, 10**6, workers=workers, threads=threads, prefetch=4)


def torch_batches(folder: pathlib.Path, workers: int):
  import numpy as np
  import tokenizers
  import torch
  from PIL import Image
  from torchvision import transforms

  class Images(torch.utils.data.Dataset):
    def __init__(self):
      self.rows = [json.loads(line) for line in open(folder / "metadata.jsonl")]
      self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
      self.transform = transforms.Compose(
        [
          transforms.Resize((SIZE, SIZE), transforms.InterpolationMode.BICUBIC),
          transforms.RandomCrop(CROP),
          transforms.RandomHorizontalFlip(),
          transforms.ToTensor(),
          transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
      )

    def __len__(self):
      return len(self.rows)

    def __getitem__(self, index):
      row = self.rows[index]
      with Image.open(folder / row["file_name"]) as image:
        rgba = image.convert("RGBA")
      white = Image.new("RGBA", rgba.size, "white")
      white.alpha_composite(rgba)
      tokens = self.tokenizer.encode(row["caption"], add_special_tokens=False).ids[: LENGTH - 2]
      ids = np.zeros(LENGTH, np.int64)
      ids[: len(tokens)] = tokens
      return self.transform(white.convert("RGB")), torch.from_numpy(ids)

  loader = torch.utils.data.DataLoader(
    Images(), BATCH, shuffle=True, num_workers=workers, persistent_workers=True, drop_last=True
  )
  while True:
    yield from loader


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument("--images", type=pathlib.Path, required=True)
  parser.add_argument("--side", choices=("vlx", "torch"), default="vlx")
  parser.add_argument("--workers", type=int, default=2)
  parser.add_argument("--threads", type=int, default=2, help="of vlx, with --workers=0")
  parser.add_argument("--seconds", type=float, default=20)
  arguments = parser.parse_args()
  if arguments.side == "vlx":
    batches = vlx_batches(arguments.images, arguments.workers, arguments.threads)
  else:
    batches = torch_batches(arguments.images, arguments.workers)
  for _ in range(8):  # workers start, buffers fill
    next(batches)
  rates = []
  for _ in range(PARTS):
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < arguments.seconds / PARTS:
      next(batches)
      count += BATCH
    rates.append(count / (time.perf_counter() - start))
  print(
    f"{arguments.side}, {arguments.workers} workers: {statistics.median(rates):.0f} images/s"
    f" ({min(rates):.0f} to {max(rates):.0f})",
    flush=True,
  )


if __name__ == "__main__":
  main()
