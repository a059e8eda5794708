"""Records torch.nn.LSTM: `python tests/parity/record/lstm.py`."""

import common
import torch

INPUTS, FEATURES = 7, 5


def main():
  lstm = common.redrawn(torch.nn.LSTM(INPUTS, FEATURES, batch_first=True), seed=0)
  generator = torch.Generator().manual_seed(1)
  x = torch.randn(3, 6, INPUTS, generator=generator)
  hidden, cell = torch.randn(2, 3, FEATURES, generator=generator)
  output, (last_hidden, last_cell) = lstm(x, (hidden[None], cell[None]))
  common.save(
    "lstm",
    {
      "lstm": {
        "config": {"inputs": INPUTS, "features": FEATURES},
        "weights": lstm.state_dict(),
        "inputs": {"x": x, "hidden": hidden, "cell": cell},
        "outputs": {"hidden": output, "last_hidden": last_hidden[0], "last_cell": last_cell[0]},
      }
    },
  )


if __name__ == "__main__":
  main()
