#!/usr/bin/env bash
# Collects into .whl/ what vlx needs beside jax, flax, optax, orbax and torch: for Python 3.12 on x86-64 Linux; into .data/
# the emoji data, prepared.
set -euo pipefail
cd "$(dirname "$0")/../.."
rm -rf .whl
for package in ml-collections==1.1.0 grain==0.2.18 array_record==0.8.3 etils importlib_resources gguf ftfy wcwidth \
    tensorboardX beartype tensorflow-datasets immutabledict toml wrapt simple_parsing docstring_parser protobuf; do
  python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    $(printf -- '--platform manylinux_2_%s_x86_64 ' 17 24 27 28 31 34 35) --platform manylinux2014_x86_64 \
    -d .whl "$package"
done
python3 -m pip wheel --quiet --no-deps -w .whl promise  # comes as source alone
rm -rf .data
"${VLX_PYTHON:-.venv/bin/python}" -c 'import vlx.data.sources as s; s.open_source("tfds:emoji", "train")'
mkdir .data
cp -r "${TFDS_DATA_DIR:-$HOME/tensorflow_datasets}/emoji" .data/
du -sh .whl .data
