#!/usr/bin/env bash
# Runs the examples as the README tells to, and the main job with each implementation.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo build --release --examples
run() {
    printf -- '-- %s\n' "$*"
    "$@"
}
run target/release/examples/doctor
run target/release/examples/wordcount --check .
run target/release/examples/trace --check --output target/trace.json src tests
run target/release/examples/counters --check --seconds 1
run target/release/examples/kv --check --port 17379
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
