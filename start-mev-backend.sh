#!/usr/bin/env bash
# Installs what is missing into .venv and runs everything on this machine, with simulated live data.
# The simulated data is left out with --no-demo, or when any service variable is set. Other arguments go to `mev up`.
set -euo pipefail
cd "$(dirname "$0")"

stamp=.venv/installed
if [ ! -e "$stamp" ] || [ requirements.lock -nt "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ -n "$(find native/Cargo.lock native/src -newer "$stamp")" ]; then
  echo "mev: installing into .venv (once) ..." >&2
  tools/install requirements.lock
  touch "$stamp"
fi

demo=--demo
arguments=()
for argument in "$@"; do
  case $argument in
    --no-demo) demo= ;;
    *) arguments+=("$argument") ;;
  esac
done
[ -z "${KAFKA_BROKERS:-}${REDIS_URL:-}${CLICKHOUSE_HOST:-}" ] || demo=

exec .venv/bin/mev up ${demo:+"$demo"} "${arguments[@]+"${arguments[@]}"}"
