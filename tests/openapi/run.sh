#!/usr/bin/env bash
# Holds the running gateway to its OpenAPI document with schemathesis: as an operator, as an
# ordinary user, and without a token.
#
# GATEWAY_BIN   the binary (default: target/debug/event-gateway)
# SEED          of what is tried (default 1); EXAMPLES of each operation (default 60)
set -euo pipefail
cd "$(dirname "$0")"
here=$PWD root=$(cd ../.. && pwd)
bin=${GATEWAY_BIN:-$root/target/debug/event-gateway}
venv=$root/target/schemathesis

# A venv that was broken off has no stamp and is made anew.
if ! cmp -s requirements.txt "$venv/requirements.txt"; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement requirements.txt
    cp requirements.txt "$venv/requirements.txt"
fi

dir=$(mktemp -d)
export GATEWAY__HTTP__LISTEN=127.0.0.1:0 GATEWAY__DATA__DIR=$dir/data GATEWAY__LOG__FORMAT=json
# Development mode, so that its sign-in is there; a fuzzer is faster than a user may be.
export GATEWAY__HTTP__RATE_LIMIT=0
# What it submits really runs, and would take every core.
export GATEWAY__RUNNER__CONCURRENCY=1
# Before the process that writes it, which may come late.
: >"$dir/log"
(cd "$dir" && exec "$bin" serve) >"$dir/stdout" 2>"$dir/log" &
gateway=$!

finish() {
    local code=$?
    trap - EXIT
    kill -KILL "$gateway" 2>/dev/null || true
    wait "$gateway" 2>/dev/null || true
    if [ "$code" != 0 ]; then
        echo "openapi: failed; the gateway's log, without refusals:" >&2
        grep -v '"message":"request refused"' "$dir/log" | tail -n 200 >&2 || true
    fi
    rm -rf "$dir"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

url=
for _ in $(seq 300); do
    url=$(sed -n 's/.*listening on \(http:[0-9.:/]*\).*/\1/p' "$dir/log")
    if [ -n "$url" ] && curl --silent --fail --output /dev/null "$url/readyz"; then break; fi
    kill -0 "$gateway" 2>/dev/null || { echo "openapi: the gateway does not start" >&2; exit 1; }
    sleep 0.1
done
[ -n "$url" ] || { echo "openapi: the gateway does not listen" >&2; exit 1; }

token() { (cd "$dir" && "$bin" token issue --user "$1" --role "$2"); }

# Work for the worker API to claim; the fuzzer finds the ids in what is answered.
operator=$(token olga operator)
jobs=$(python3 -c 'import json; print(json.dumps({"jobs": [{"agent": "external", "dataset_id": "survey/1"}] * 200}))')
curl --silent --fail --output /dev/null --header "Authorization: Bearer $operator" \
    --header 'Content-Type: application/json' --data "$jobs" "$url/api/v1/jobs/batch"

# run NAME [ARGUMENT...]
run() {
    echo "== OpenAPI: $1"
    shift
    (cd "$dir" && timeout 300 "$venv/bin/schemathesis" --config-file "$here/schemathesis.toml" run "$url/api/openapi.json" \
        --seed "${SEED:-1}" --max-examples "${EXAMPLES:-60}" --generation-database none --continue-on-failure \
        --workers 1 --no-color "$@")
}

run "an operator" --header "Authorization: Bearer $operator"
run "a user" --header "Authorization: Bearer $(token ursula user)"
run "nobody"

# It has survived all that, wrote no error, and stops as it should.
kill -TERM "$gateway"
wait "$gateway" || { echo "openapi: the gateway ended with $?" >&2; exit 1; }
if grep -E '"level":"ERROR"|panicked' "$dir/log" >&2; then
    echo "openapi: the gateway's log has errors" >&2
    exit 1
fi
echo "openapi: ok"
