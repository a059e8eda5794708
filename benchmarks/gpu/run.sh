#!/usr/bin/env bash
# benchmarks/gpu/run.sh PART…  runs parts one after another, each for $LIMIT seconds (240) at most;
# tables and JSON in $OUT. Ends with 1 where a part failed.
cd "$(dirname "$0")/../.."
source benchmarks/gpu/installed.sh
failed=0
for part in "$@"; do
  echo "== $part"
  start=$(date +%s)
  timeout "${LIMIT:-240}" python3 -m benchmarks.gpu."$part" 2>&1 | grep -v '^[IW][0-9]'
  [ "${PIPESTATUS[0]}" = 0 ] || failed=1
  echo "== $part: $(($(date +%s) - start)) s"
done
exit $failed
