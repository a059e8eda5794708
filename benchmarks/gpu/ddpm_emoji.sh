#!/usr/bin/env bash
# benchmarks/gpu/ddpm_emoji.sh [flags of vlx.train]   trains configs/ddpm.py:emoji and samples of it, in 8 minutes at
# most; the run, its grids and figures in $OUT/ddpm_emoji (results/gpu without $OUT). The emoji data lies in .data/.
cd "$(dirname "$0")/../.."
source benchmarks/gpu/installed.sh
[ -d .data ] && export TFDS_DATA_DIR=$PWD/.data
start=$(date +%s)
timeout 480 python3 -m vlx.train --config=configs/ddpm.py:emoji --workdir="${OUT:-results/gpu}/ddpm_emoji" "$@" 2>&1 |
  grep -v '^[IW][0-9]'
code=${PIPESTATUS[0]}
echo "== ddpm_emoji: $(($(date +%s) - start)) s"
exit "$code"
