#!/usr/bin/env bash
# Runs the storms, in release. Those of per-CPU memory last as long as is wanted: threads that
# migrate, yield and sleep, timers of 10 microseconds and SIGUSR1 whose handlers work on
# the same objects, drains, fences, forks, killed processes. Every item is accounted for.
# Those of the shared locks and of the channel kill as many processes as is wanted: no item
# is lost or doubled, no other process is left asleep.
#
# usage: ci/stress.sh [SECONDS [KILLS]]
#   SECONDS    how long each storm lasts in each implementation (10)
#   KILLS      how many each storm of kills kills, up to 10000 (10000)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export UNMERGED_STRESS_SECONDS=${1:-10} UNMERGED_STRESS_KILLS=${2:-10000}
begin=$SECONDS
for test in percpu percpu_area ring stack_pool lock_array; do
    cargo test --release --quiet --test "$test"
done
# One storm at a time, each of which says how many it killed.
for test in futex2_storms futex2_locks_shared futex2_channel_peers; do
    cargo test --release --quiet --test "$test" storm -- --nocapture --test-threads=1
done
echo "stress: no item lost or doubled, $((SECONDS - begin)) s"
