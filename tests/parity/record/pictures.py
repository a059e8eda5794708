"""Records what open_clip and transformers make of a few images before a network sees them.

pip install torch==2.13.0 torchvision==0.28.0 transformers==5.23.0 open_clip_torch==3.3.0 safetensors
python tests/parity/record/images.py
"""

import io

import numpy as np
import torch
from common import save  # before torchvision
from open_clip.transform import image_transform
from PIL import Image
from transformers import CLIPImageProcessor, ViTImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SIZE = 24
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Mode, height, width: longer sides that are not whole after the resize, nor borders in the crop.
PICTURES = {
  "rgb": ("RGB", 37, 61),
  "tall": ("RGB", 43, 20),
  "rgba": ("RGBA", 40, 61),
  "gray": ("L", 33, 45),
  "gray_alpha": ("LA", 31, 50),
  "palette": ("P", 31, 50),
}
CLIP = dict(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
VIT = dict(size={"height": SIZE, "width": SIZE})


def picture(mode: str, height: int, width: int, rng) -> Image.Image:
  """Waves and noise."""
  y, x = np.mgrid[:height, :width, :4][:2]
  waves = 127 + 90 * np.sin(y / 5 + np.arange(4)) * np.cos(x / 7)
  noise = rng.normal(0, 20, (height, width, 4))
  rgba = Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8), "RGBA")
  return rgba.convert("RGB").convert(mode) if mode == "P" else rgba.convert(mode)


def encoded(image: Image.Image) -> bytes:
  out = io.BytesIO()
  image.save(out, "png")
  return out.getvalue()


if __name__ == "__main__":
  rng = np.random.default_rng(0)
  files = {name: encoded(picture(*how, rng)) for name, how in PICTURES.items()}
  opened = {name: Image.open(io.BytesIO(data)) for name, data in files.items()}
  processors = dict(
    clip_pil=CLIPImageProcessorPil(**CLIP),
    clip=CLIPImageProcessor(**CLIP),
    vit_pil=ViTImageProcessorPil(**VIT, do_convert_rgb=True),
    vit=ViTImageProcessor(**VIT, do_convert_rgb=True),
  )
  transform = image_transform(SIZE, is_train=False, mean=MEAN, std=STD)
  outputs = {
    f"open_clip.{name}": transform(image).permute(1, 2, 0) for name, image in opened.items()
  }
  for kind, processor in processors.items():
    for name, image in opened.items():
      found = torch.as_tensor(processor(image, return_tensors="pt").pixel_values)
      outputs[f"{kind}.{name}"] = found[0].permute(1, 2, 0).float()
  inputs = {
    name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in files.items()
  }
  configs = {kind: processor.to_dict() for kind, processor in processors.items()}
  save("pictures", {"pictures": dict(config=configs, inputs=inputs, outputs=outputs)})
