#!/usr/bin/env bash
# Builds the images and runs compose.yml for real, by hand: nothing of it is part of ./dev test, which needs no containers.
#   docker/test.sh                       podman with podman-compose 1.1 or later, or docker with its compose plugin
#   SERVICES="headroom prometheus" PROMETHEUS_IMAGE=… HAPROXY_IMAGE=… docker/test.sh      where a registry cannot be reached
#   BUILD=no docker/test.sh              with the images that are there
# Leaves nothing running. Prints sizes, times and what Prometheus saw; ends at the first thing that is not as it should be.
set -euo pipefail
cd "$(dirname "$0")"

if command -v podman-compose >/dev/null; then
  ENGINE=podman COMPOSE=(podman-compose)
else
  ENGINE=docker COMPOSE=(docker compose)
fi
SERVICES=${SERVICES:-headroom prometheus grafana}
API=http://127.0.0.1:8000
PROMETHEUS=http://127.0.0.1:9090

say() { printf '==> %s\n' "$*"; }
fail() { say "FAILED: $*"; exit 1; }
compose() { "${COMPOSE[@]}" --profile compare --profile replicas "$@"; }
take_down() { compose down -v -t 60 >/dev/null 2>&1 || true; }
trap take_down EXIT

# until SECONDS COMMAND…: repeats it until it succeeds.
until_true() {
  local deadline=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || fail "still not true: $*"
    sleep 0.2
  done
}
healthy() { compose exec -T "$1" /usr/bin/headroom health; }
# number QUERY: the sum of what Prometheus answers.
number() {
  curl -sfG "$PROMETHEUS/api/v1/query" --data-urlencode "query=sum($1)" |
    python3 -c 'import json, sys; found = json.load(sys.stdin)["data"]["result"]; print(found[0]["value"][1] if found else "nothing")'
}
shows() { [ "$(number "$1")" = "$2" ]; }
some() { case "$(number "$1")" in nothing | 0 | NaN) return 1 ;; esac; }
complete() {
  curl -sf "$1/v1/completions" -H 'Content-Type: application/json' \
    -d '{"prompt": "The password for Anna is walnut. What is the password for Anna?", "max_tokens": 8, "temperature": 0}'
}

if [ "${BUILD:-yes}" = yes ]; then
  say "building"
  for target in cpu load; do "$ENGINE" build -q -f Dockerfile --target "$target" -t "headroom:$target" .. >/dev/null; done
fi
"$ENGINE" images --format '{{.Repository}}:{{.Tag}} {{.Size}}' | grep -E 'headroom:(cpu|load)'

say "base: $SERVICES"
take_down
began=$(date +%s%N)
# shellcheck disable=SC2086
compose up -d $SERVICES >/dev/null 2>&1
until_true 60 healthy headroom
say "healthy after $((($(date +%s%N) - began) / 1000000)) ms"
complete "$API" | grep -q '"finish_reason"' || fail "no completion"
container=$("$ENGINE" ps -q --filter "label=com.docker.compose.service=headroom" | head -n 1)
facts=$("$ENGINE" inspect "$container" --format '{{.HostConfig.ReadonlyRootfs}} {{.Config.User}} {{.HostConfig.PidsLimit}} {{.HostConfig.Memory}} {{.HostConfig.SecurityOpt}}')
say "read-only, user, processes, memory, options: $facts"
limit=4294967296
case "$facts" in "true 65532:65532 4096 $limit "*no-new-privileges*) ;; *) fail "not contained: $facts" ;; esac
! compose exec -T headroom sh -c true >/dev/null 2>&1 || fail "the image has a shell"
until_true 60 shows 'up{job="headroom"}' 1
until_true 60 some 'vllm:generation_tokens_total'
until_true 30 some 'count(headroom:generated_tokens:rate1m)'
pool=$(number headroom_kv_pool_bytes)
say "Prometheus sees a KV pool of $pool bytes"
python3 -c "import sys; sys.exit(not 0 < float('$pool') < $limit)" || fail "the pool is not within the container's memory"

say "profile compare"
compose up -d headroom-mha headroom-gqa headroom-mqa load >/dev/null 2>&1
for shape in mha gqa mqa; do until_true 60 healthy "headroom-$shape"; done
until_true 60 shows 'count by (job) (headroom_kv_saving_ratio{service=~"headroom-.*"})' 3
until_true 300 shows 'count(headroom_decode_tokens_total{context_tokens="4096", service=~"headroom-.*"} > 0)' 3
for shape in mha gqa mqa; do
  say "$shape: $(number "headroom_kv_token_bytes{service=\"headroom-$shape\"}") bytes per token, saved $(number "headroom_kv_saving_ratio{service=\"headroom-$shape\"}")," \
    "$(number "sum(headroom_decode_tokens_total{service=\"headroom-$shape\"})") tokens decoded so far"
done
compose stop -t 60 load headroom-mha headroom-gqa headroom-mqa >/dev/null 2>&1

say "profile replicas"
compose up -d replica-1 replica-2 replica-3 router >/dev/null 2>&1
for replica in 1 2 3; do until_true 60 healthy "replica-$replica"; done
until_true 60 complete http://127.0.0.1:8010
until_true 30 shows 'haproxy_server_status{state="UP"}' 3
compose kill replica-2 >/dev/null 2>&1
lost=0
for _ in $(seq 40); do complete http://127.0.0.1:8010 >/dev/null || lost=$((lost + 1)); done
say "one of three replicas killed: $lost of 40 requests lost"
[ "$lost" = 0 ] || fail "requests were lost"

say "ending"
began=$(date +%s%N)
take_down
say "down after $((($(date +%s%N) - began) / 1000000)) ms"
say "all as it should be"
