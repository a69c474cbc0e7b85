#!/usr/bin/env bash
# Runs the examples as the README tells to, and the main job with each implementation.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ci/install.sh pgrep:procps
cargo build --release --examples
run() {
    printf -- '-- %s\n' "$*"
    "$@"
}
run target/release/examples/doctor
run target/release/examples/wordcount --check .
run target/release/examples/trace --check --output target/trace.json src tests
run target/release/examples/counters --check --seconds 1
run target/release/examples/pipeline --check --kill-one
# On a wordcount while it runs, long enough for all three: its workers publish after each file.
run_top() {
    local words worker=
    mapfile -t paths < <(yes src | head -n 3000)
    target/release/examples/wordcount --processes 2 "${paths[@]}" >/dev/null &
    words=$!
    until [ -n "$worker" ] && target/release/examples/top "$worker" --json >target/top.json 2>/dev/null; do
        kill -0 "$words"
        worker=$(pgrep --parent "$words" | head -n 1) || true
    done
    python3 -m json.tool target/top.json >/dev/null
    run target/release/examples/top "$worker" --once --interval 10
    run target/release/examples/top "$worker" --prometheus >target/top.prometheus
    grep -q '^task_alive.* 1$' target/top.prometheus
    kill "$words"
    wait "$words" || true
}
run_top

run target/release/examples/kv --check --port 17379 --kills 40
run ci/kv.sh
for percpu in gs rseq portable; do
    export UNMERGED_PERCPU=$percpu
    for processes in 1 2 3; do
        run target/release/examples/wordcount --check --kill-one --processes "$processes" src tests
    done
    run target/release/examples/trace --check --output target/trace.json src tests
    run target/release/examples/counters --check --seconds 1 --threads 8
done
unset UNMERGED_PERCPU
export GLIBC_TUNABLES=glibc.pthread.rseq=0
run target/release/examples/wordcount --check --kill-one src tests
echo "examples: all ran"
