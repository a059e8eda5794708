"""The same as `benchmarks.captioning` in plain PyTorch: `python benchmarks/captioning_torch.py
[RUNS]`.

Written for this comparison, the way public implementations are: a loop over words in Python,
modules of torch.nn, all beams of all images as one batch.
"""

import statistics
import sys
import time

import torch
from torch import nn

WIDTH, PLACES, VOCABULARY, WORDS = 512, 196, 5000, 20
START, END = 0, 1


class Decoder(nn.Module):
  def __init__(self):
    super().__init__()
    self.words = nn.Embedding(VOCABULARY, WIDTH)
    self.cell = nn.LSTMCell(2 * WIDTH, WIDTH)
    self.init_state, self.init_memory = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    self.keys, self.query = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
    self.score, self.gate = nn.Linear(WIDTH, 1, bias=False), nn.Linear(WIDTH, 1)
    self.output_hidden, self.output_context = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    self.head, self.dropout = nn.Linear(WIDTH, VOCABULARY), nn.Dropout(0.5)

  def begin(self, features):
    mean = features.mean(dim=1)
    state = torch.tanh(self.init_state(mean)), torch.tanh(self.init_memory(mean))
    return self.keys(features), state

  def attend(self, features, keys, hidden):
    scores = self.score(torch.tanh(keys + self.query(hidden)[:, None])).squeeze(-1)
    weights = scores.softmax(dim=1)
    context = torch.bmm(weights[:, None], features).squeeze(1)
    return weights, torch.sigmoid(self.gate(hidden)) * context

  def output(self, hidden, words, context):
    x = self.output_hidden(self.dropout(hidden)) + words + self.output_context(context)
    return self.head(self.dropout(x))

  def forward(self, features, text):
    keys, (hidden, cell) = self.begin(features)
    words = self.words(text[:, :-1])
    outputs, maps = [], []
    for t in range(words.shape[1]):
      weights, context = self.attend(features, keys, hidden)
      hidden, cell = self.cell(torch.cat([words[:, t], context], dim=1), (hidden, cell))
      outputs.append((hidden, context))
      maps.append(weights)
    hidden, context = (torch.stack(x, dim=1) for x in zip(*outputs))
    return self.output(hidden, words, context), torch.stack(maps, dim=1)


def loss_of(decoder, features, text):
  logits, maps = decoder(features, text)
  nll = nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten(), reduction="sum")
  penalty = ((1 - maps.sum(dim=1)) ** 2).sum(dim=1).mean()
  return nll / len(text) + penalty


@torch.inference_mode()
def beam_search(decoder, features, beams, length):
  """(ids, log-probabilities) of the best of each image; ended beams stay among the others."""
  batch = len(features)
  keys, (hidden, cell) = decoder.begin(features)
  features, keys, hidden, cell = (
    x.repeat_interleave(beams, dim=0) for x in (features, keys, hidden, cell)
  )
  tokens = torch.full((batch * beams,), START)
  ids = torch.zeros(batch, beams, 0, dtype=torch.long)
  totals = torch.full((batch, beams), -torch.inf)
  totals[:, 0] = 0
  ended = torch.zeros(batch, beams, dtype=torch.bool)
  only_end = torch.full((VOCABULARY,), -torch.inf)
  only_end[END] = 0
  for _ in range(length):
    words = decoder.words(tokens)
    _, context = decoder.attend(features, keys, hidden)
    hidden, cell = decoder.cell(torch.cat([words, context], dim=1), (hidden, cell))
    log_probs = decoder.output(hidden, words, context).log_softmax(dim=-1).view(batch, beams, -1)
    log_probs = torch.where(ended[..., None], only_end, log_probs)
    totals, index = (totals[..., None] + log_probs).flatten(1).topk(beams, dim=1)
    origin, chosen = index // VOCABULARY, index % VOCABULARY
    rows = (torch.arange(batch)[:, None] * beams + origin).flatten()
    hidden, cell, tokens = hidden[rows], cell[rows], chosen.flatten()
    ids = torch.cat([ids.flatten(0, 1)[rows].view(batch, beams, -1), chosen[..., None]], dim=2)
    ended = ended.flatten()[rows].view(batch, beams) | (chosen == END)
    if ended.all():
      break
  return ids[:, 0], totals[:, 0]


def timed(function, count):
  times = []
  for _ in range(count + 1):
    start = time.perf_counter()
    result = function()
    times.append(time.perf_counter() - start)
  return result, statistics.median(times[1:])


def main():
  count = int(sys.argv[1]) if len(sys.argv) > 1 else 10
  torch.manual_seed(0)
  decoder = Decoder()
  features, text = torch.rand(64, PLACES, WIDTH), torch.randint(2, VOCABULARY, (64, WORDS + 1))
  optimizer = torch.optim.Adam(decoder.parameters(), 4e-4)

  def step():
    optimizer.zero_grad()
    loss = loss_of(decoder, features, text)
    loss.backward()
    optimizer.step()
    return loss.item()

  loss, seconds = timed(step, count)
  print(f"training step {1000 * seconds:.0f} ms, loss {loss:.2f}")
  decoder.eval()
  (ids, _), seconds = timed(
    lambda: beam_search(decoder, features[:16], 20, WORDS), max(count // 2, 1)
  )
  print(f"beam search {1000 * seconds:.0f} ms, {ids.shape[1]} words")


if __name__ == "__main__":
  main()
