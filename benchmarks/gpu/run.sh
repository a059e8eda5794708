#!/usr/bin/env bash
# benchmarks/gpu/run.sh PART…  runs parts one after another, each for $LIMIT seconds (240) at most; tables and JSON in $OUT.
cd "$(dirname "$0")/../.."
if [ -d .whl ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl
  export PYTHONPATH=/tmp/site
fi
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false VLX_CACHE=/tmp/vlx_cache
for part in "$@"; do
  echo "== $part"
  start=$(date +%s)
  timeout "${LIMIT:-240}" python3 -m benchmarks.gpu."$part" 2>&1 | grep -v '^[IW][0-9]'
  echo "== $part: $(($(date +%s) - start)) s"
done
