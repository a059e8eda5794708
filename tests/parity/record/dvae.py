"""Records OpenAI's discrete VAE (PyPI `DALL-E`) at tiny widths, and the names of its public files.

pip install torch==2.13.0 safetensors attrs requests
pip install --no-deps DALL-E==0.1
python tests/parity/record/dvae.py
"""

import torch
from common import PARITY, redrawn, save, save_names
from dall_e import Decoder, Encoder, map_pixels, unmap_pixels
from safetensors.torch import save_file

TINY = dict(n_hid=8, vocab_size=20)
CODE_DIM = 12


class Both(torch.nn.Module):
  """The two modules, their names behind "encoder." and "decoder."."""

  def __init__(self, code_dim=128, **sizes):
    super().__init__()
    self.encoder, self.decoder = Encoder(**sizes), Decoder(n_init=code_dim, **sizes)


if __name__ == "__main__":
  torch.manual_seed(0)
  model = redrawn(Both(CODE_DIM, **TINY), 0)
  image = torch.rand(2, 3, 32, 16)
  with torch.no_grad():
    logits = model.encoder(map_pixels(image))
    ids = logits.argmax(1)
    weights = logits.softmax(1)
    soft = model.decoder(weights)
    hard = model.decoder(
      torch.nn.functional.one_hot(ids, TINY["vocab_size"]).permute(0, 3, 1, 2).float()
    )
    reconstruction = unmap_pixels(hard[:, :3].sigmoid())
  last = lambda x: x.movedim(1, -1)
  save(
    "dvae",
    {
      "tiny": dict(
        config={**TINY, "code_dim": CODE_DIM},
        weights=model.state_dict(),
        inputs=dict(image=last(image)),
        outputs=dict(
          logits=last(logits), ids=ids.int(), soft=last(soft), reconstruction=last(reconstruction)
        ),
      )
    },
  )
  save_names("dvae", Both())
  # Whole modules, as OpenAI published them: one in each of torch's formats.
  whole = redrawn(Both(CODE_DIM, n_blk_per_group=1, **TINY), 1)
  folder = PARITY / "dvae"
  folder.mkdir(exist_ok=True)
  torch.save(whole.encoder, folder / "encoder.pkl")
  torch.save(whole.decoder, folder / "decoder.pkl", _use_new_zipfile_serialization=False)
  save_file(
    {k: x.contiguous() for k, x in whole.state_dict().items()}, folder / "weights.safetensors"
  )
  (folder / "weights.safetensors").chmod(0o644)
