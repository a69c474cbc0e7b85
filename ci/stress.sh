#!/usr/bin/env bash
# Runs the storms, in release. Those of per-CPU memory last as long as is wanted: threads that
# migrate, yield and sleep, timers of 10 microseconds and SIGUSR1 whose handlers work on
# the same objects, drains, fences, forks, killed processes. Every item is accounted for.
# Those of the shared locks, of the channel and of kv kill as many processes as is wanted: no item
# is lost or doubled, no other process is left asleep. Those of the regions kill a process at every
# system call of its changes and of its taking over, map one region in 1000 programs, and change,
# kill and fork for as long as is wanted.
#
# usage: ci/stress.sh [SECONDS [KILLS [WHAT...]]]
#   SECONDS    how long each storm lasts in each implementation (10)
#   KILLS      how many each storm of kills kills, up to 10000 (10000)
#   WHAT       percpu, futex2, mshare (all three)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export UNMERGED_STRESS_SECONDS=${1:-10} UNMERGED_STRESS_KILLS=${2:-10000}
export UNMERGED_STRESS_THOROUGH=1
shift $(($# < 2 ? $# : 2))
(($#)) || set -- percpu futex2 mshare
begin=$SECONDS
storm() { cargo test --release --quiet --test "$@"; }
for what; do
    case $what in
    percpu)
        for test in percpu percpu_area ring stack_pool lock_array; do
            storm "$test"
        done
        ;;
    futex2)
        # One storm at a time, each of which says how many it killed.
        for test in futex2_storms futex2_locks_shared futex2_channel_peers; do
            storm "$test" storm -- --nocapture --test-threads=1
        done
        ;;
    mshare)
        # At every step; each test says how many there were.
        storm mshare_killed -- --nocapture --test-threads=1
        storm mshare_life an_heir_that_dies_on_the_way
        storm mshare all_programs_have_it_at_one_address
        storm mshare_followers
        storm mshare_handles
        storm mshare_heap
        cargo build --release --quiet --example kv
        storm mshare_kv
        ;;
    *)
        echo "stress: no storm of $what" >&2
        exit 2
        ;;
    esac
done
echo "stress: no item lost or doubled, $((SECONDS - begin)) s"
