#!/usr/bin/env bash
# benchmarks/gpu/run.sh PART…  runs parts one after another, each for $LIMIT seconds (240) at most;
# tables and JSON in $OUT. Ends with 1 where a part failed.
cd "$(dirname "$0")/../.."
if [ -d .whl ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .whl/*.whl
  export PYTHONPATH=$site
fi
export PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
failed=0
for part in "$@"; do
  echo "== $part"
  start=$(date +%s)
  timeout "${LIMIT:-240}" python3 -m benchmarks.gpu."$part" 2>&1 | grep -v '^[IW][0-9]'
  [ "${PIPESTATUS[0]}" = 0 ] || failed=1
  echo "== $part: $(($(date +%s) - start)) s"
done
exit $failed
