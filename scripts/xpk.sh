#!/bin/bash
# One training on TPU slices of a GKE cluster made by xpk (https://github.com/AI-Hypercomputer/xpk).
#
#   CLUSTER=my-cluster TPU_TYPE=v5litepod-256 scripts/xpk.sh NAME --config=configs/clip.py:l14 --workdir=/mnt/runs/l14
#
# xpk builds an image from this checkout, starts one worker per host and restarts the job when a host is
# taken away; vlx saves on SIGTERM and goes on. WORKDIR must lie on a volume that all hosts mount.
set -euo pipefail
name=$1
shift
here=$(cd "$(dirname "$0")/.." && pwd)

xpk workload create \
  --cluster="${CLUSTER:?the GKE cluster}" \
  --workload="$name" \
  --tpu-type="${TPU_TYPE:?e.g. v5litepod-256}" \
  --num-slices="${NUM_SLICES:-1}" \
  --max-restarts="${MAX_RESTARTS:-100}" \
  --base-docker-image="${IMAGE:-python:3.11}" \
  --script-dir="$here" \
  --command="pip install --quiet -e '.[tpu]' && python -m vlx.train $(printf '%q ' "$@")"
