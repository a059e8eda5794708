"""Records VGG, GoogLeNet and ResNet of torchvision: `python tests/parity/record/cnn.py`.

Writes ../names/NETWORK.txt, the names and shapes of the published files, and
../NETWORK.safetensors, the same networks with fewer channels: weights, images, outputs.

    pip install torch==2.13.0 torchvision==0.28.0 safetensors
"""

import importlib
import zlib

import torch
import torchvision
from common import PARITY  # before torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet, vgg

googlenet = importlib.import_module("torchvision.models.googlenet")  # a function has its name

CLASSES = 5


def write_names():
  published = dict(
    vgg11=vgg.vgg11,
    vgg13=vgg.vgg13,
    vgg16=vgg.vgg16,
    vgg19=vgg.vgg19,
    googlenet=lambda: googlenet.GoogLeNet(init_weights=False),
    resnet18=resnet.resnet18,
    resnet34=resnet.resnet34,
    resnet50=resnet.resnet50,
    resnet101=resnet.resnet101,
    resnet152=resnet.resnet152,
  )
  for name, make in published.items():
    with torch.device("meta"):
      tensors = make().state_dict()
    lines = [" ".join([key, *map(str, value.shape)]) for key, value in tensors.items()]
    (PARITY / "names" / f"{name}.txt").write_text("\n".join(lines) + "\n")


def draw(model, seed):
  """Weights of any network at a scale that lets the input reach the output; no statistic as it
  starts.
  """
  # else what a block adds is lost beside the sum
  gain = 0.5 if isinstance(model, resnet.ResNet) else 2
  generator = torch.Generator().manual_seed(seed)
  normal = lambda x: torch.randn(x.shape, generator=generator)
  for name, x in model.state_dict().items():
    if name.endswith("running_var"):
      x.copy_(0.5 + torch.rand(x.shape, generator=generator))
    elif x.ndim > 1:
      x.copy_(normal(x) * (gain / x[0].numel()) ** 0.5)
    elif x.ndim == 1:  # biases, running means; scales about one
      scale = name.endswith("weight")
      x.copy_(scale + 0.1 * normal(x))
  return model.eval()


def record(name, model, image, watched, more=lambda seen: {}, train=()):
  """Outputs of modules `watched`, and `more(seen)`.

  Of a step in training, the statistics of modules `train` and the output of the last of them.
  """
  model = draw(model, seed=zlib.crc32(name.encode()))
  tensors = {f"weights/{k}": v.clone() for k, v in model.state_dict().items()}
  tensors["image"] = image.permute(0, 2, 3, 1)
  seen = {}
  modules = dict(model.named_modules())
  for key in {*watched, *train[-1:]}:  # cloned: a rectifier in place comes after
    modules[key].register_forward_hook(
      lambda module, x, y, key=key: seen.__setitem__(key, y.clone())
    )
  with torch.no_grad():
    tensors["outputs/logits"] = model(image)
    tensors |= {f"outputs/{k}": seen[k] for k in watched} | {
      f"outputs/{k}": v for k, v in more(seen).items()
    }
    if train:
      model.train()
      model(image)
      tensors[f"train/{train[-1]}"] = seen[train[-1]]
      tensors |= {
        f"train/{k}": v
        for k, v in model.state_dict().items()
        if ".running_" in k and k.startswith(train)
      }
  versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
  contiguous = {k: v.contiguous().clone() for k, v in tensors.items()}
  save_file(contiguous, PARITY / f"{name}.safetensors", {"recorded with": versions})


def picture(height, width, count=2, seed=0):
  return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def narrow_vgg(letter, width, hidden):
  layout = [x if x == "M" else x * width // 64 for x in vgg.cfgs[letter]]
  model = vgg.VGG(nn.Identity(), CLASSES, init_weights=False)
  model.features = vgg.make_layers(layout)
  for index, (i, o) in {
    0: (8 * width * 49, hidden),
    3: (hidden, hidden),
    6: (hidden, CLASSES),
  }.items():
    model.classifier[index] = nn.Linear(i, o)
  return model


class NarrowResNet(resnet.ResNet):
  """A sixteenth of the channels."""

  def _make_layer(self, block, planes, *args, **kwargs):
    if planes == 64:  # the first stage: the stem stands before it
      self.inplanes = 4
      self.conv1 = nn.Conv2d(3, 4, 7, 2, 3, bias=False)
      self.bn1 = nn.BatchNorm2d(4)
    return super()._make_layer(block, planes // 16, *args, **kwargs)


def narrow_resnet(block, layers):
  model = NarrowResNet(block, layers)
  model.fc = nn.Linear(32 * block.expansion, CLASSES)
  return model


class BiasedConvolution(nn.Module):
  """As in the paper: no batch normalisation."""

  def __init__(self, i, o, **kwargs):
    super().__init__()
    self.conv = nn.Conv2d(i, o, **kwargs)

  def forward(self, x):
    return torch.relu(self.conv(x))


def narrow_googlenet(convolution, paper=False):
  """A sixteenth of the channels; the paper's 5x5, poolings and response normalisation if wanted."""
  narrow = lambda i, o, **kwargs: convolution(3 if i == 3 else i // 16, o // 16, **kwargs)

  def inception(*channels):
    block = googlenet.Inception(*channels, conv_block=narrow)
    if paper:
      block.branch3[1] = narrow(channels[4], channels[5], kernel_size=5, padding=2)
    return block

  def auxiliary(channels, classes, dropout):
    head = googlenet.InceptionAux(channels, classes, conv_block=narrow, dropout=dropout)
    head.fc1, head.fc2 = nn.Linear(2048 // 16, 1024 // 16), nn.Linear(1024 // 16, classes)
    return head

  model = googlenet.GoogLeNet(
    CLASSES, transform_input=not paper, init_weights=False, blocks=[narrow, inception, auxiliary]
  )
  model.fc = nn.Linear(1024 // 16, CLASSES)
  if paper:
    model.maxpool1 = nn.Sequential(model.maxpool1, nn.LocalResponseNorm(5))
    model.maxpool2 = nn.Sequential(nn.LocalResponseNorm(5), model.maxpool2)
    model.maxpool4 = nn.MaxPool2d(3, 2, ceil_mode=True)
  return model


def record_googlenet(name, model, image):
  heads = lambda seen: {
    "aux1": model.aux1(seen["inception4a"]),
    "aux2": model.aux2(seen["inception4d"]),
  }
  watched = [f"inception{x}" for x in ("3a", "3b", "4a", "4d", "5b")]
  train = ("conv1", "conv2", "conv3") if name == "googlenet" else ()
  record(name, model, image, watched, heads, train)


def main():
  torch.set_num_threads(1)  # the same sums in the same order
  write_names()
  record(
    "vgg16", narrow_vgg("D", 4, 12), picture(50, 64), ["features.10", "features.28", "features.29"]
  )
  record("vgg19", narrow_vgg("E", 2, 12), picture(112, 128, 1), ["features.34", "features.35"])
  blocks = ["layer1.0", "layer2.0", "layer3.1", "layer4.1"]
  record("resnet18", narrow_resnet(resnet.BasicBlock, [2, 2, 2, 2]), picture(48, 59), blocks)
  record(
    "resnet50",
    narrow_resnet(resnet.Bottleneck, [3, 4, 6, 3]),
    picture(48, 59, 4),
    blocks,
    train=("bn1", "layer1", "layer2.0"),
  )
  record_googlenet("googlenet", narrow_googlenet(googlenet.BasicConv2d), picture(59, 67, 4))
  record_googlenet(
    "googlenet_paper", narrow_googlenet(BiasedConvolution, paper=True), 10 * picture(59, 67)
  )


if __name__ == "__main__":
  main()
