#!/usr/bin/env bash
# Starts `serve run orchestrator:app`, asks it one question, and goes on serving until Ctrl-C.
# Argument: the environment's bin folder. The port is Serve's own default. ONCE=1 ends at the answer.
set -euo pipefail
bin=$1
url=http://127.0.0.1:8000
# Ray starts its workers at nice 15 by default; a busy machine would starve them.
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-disabled}" RAY_worker_niceness="${RAY_worker_niceness:-0}"
export RAY_USAGE_STATS_ENABLED="${RAY_USAGE_STATS_ENABLED:-0}"

"$bin/serve" run orchestrator:app &
serve=$!
trap 'kill -TERM "$serve" 2>/dev/null || true; wait "$serve" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM

for _ in $(seq 180); do
    curl --silent --fail --output /dev/null "$url/ready" && break
    kill -0 "$serve" 2>/dev/null || { echo "serve run ended before it was ready" >&2; exit 1; }
    sleep 1
done

echo; echo "Asking: Reverse: Oslo, Rome, Lima, Paris."
curl --silent --fail-with-body "$url/v1/chat/completions" -H 'content-type: application/json' -d '{
  "model": "tiny", "temperature": 0,
  "messages": [{"role": "user", "content": "Reverse: Oslo, Rome, Lima, Paris."}]
}'
echo; echo "Serving on $url; Ctrl-C ends it."
if [ "${ONCE:-}" ]; then exit 0; fi
wait "$serve"
