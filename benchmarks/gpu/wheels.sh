#!/usr/bin/env bash
# Collects into .whl/ what vlx needs beside jax, flax, optax, orbax and torch: for Python 3.12 on x86-64 Linux.
set -euo pipefail
cd "$(dirname "$0")/../.."
rm -rf .whl
for package in ml-collections==1.1.0 grain==0.2.18 array_record==0.8.3 etils importlib_resources gguf ftfy wcwidth \
    tensorboardX beartype; do
  python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    $(printf -- '--platform manylinux_2_%s_x86_64 ' 17 24 27 28 31 34 35) --platform manylinux2014_x86_64 \
    -d .whl "$package"
done
du -sh .whl
