#!/bin/bash
# One training on all workers of a Cloud TPU pod slice; JAX finds them by itself.
#
#   scripts/tpu_pod.sh NAME ZONE --config=configs/clip.py:l14 --workdir=/mnt/runs/l14
#
# It copies this checkout to every worker, installs it and starts the same command on each. WORKDIR must
# lie on a file system that all workers see (Filestore, or a bucket mounted by gcsfuse). Ends when the first
# worker ends badly; the same command goes on from the last checkpoint.
set -euo pipefail
name=$1 zone=$2
shift 2
here=$(cd "$(dirname "$0")/.." && pwd)

ssh() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

checkout=$(mktemp)
trap 'rm -f "$checkout"' EXIT
tar --exclude=.git --exclude=.venv --exclude=runs -czf "$checkout" -C "$here" .
gcloud compute tpus tpu-vm scp "$checkout" "$name":vlx.tar.gz --zone="$zone" --worker=all
ssh "mkdir -p vlx && tar xzf vlx.tar.gz -C vlx && cd vlx && python3 -m venv .venv &&
  .venv/bin/pip install --quiet -e '.[tpu]'"
ssh "cd vlx && .venv/bin/python -m vlx.train $(printf '%q ' "$@")"
