#!/usr/bin/env bash
# Counts the system calls of a refresh of the screen: the same with 10 threads and with 1000, and
# none on the process that is looked at.
#
# usage: examples/top/strace.sh [PROGRAM]    (target/release/examples/top); needs strace and script
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

top=${1:-target/release/examples/top}
counts=$(mktemp -d)
trap 'exec 3>&-; rm -r "$counts"' EXIT

# Calls of so many refreshes at a process of so many threads, by name.
calls() {
    local file="$counts/$1.$2"
    script --quiet --return --command \
        "strace --summary-only --output=$file $top --interval 20 --refreshes $2 $3" \
        --log-out /dev/null >/dev/null </dev/null
    awk '$4 ~ /^[0-9]+$/ && $NF != "total" { print $NF, $4 }' "$file" | sort
}

for threads in 10 1000; do
    # It lives as long as descriptor 3.
    exec 3> >("$top" --demo "$threads" >"$counts/pid")
    until [ -s "$counts/pid" ]; do sleep 0.1; done
    # All have their slots.
    sleep 2
    pid=$(cat "$counts/pid")
    join -a 2 -e 0 -o 0,1.2,2.2 <(calls "$threads" 20 "$pid") <(calls "$threads" 120 "$pid") |
        awk '$3 != $2 { print $1, $3 - $2 }' >"$counts/of.$threads"
    exec 3>&-
    printf '%s threads, 100 refreshes: %s\n' "$threads" "$(tr '\n' ' ' <"$counts/of.$threads")"
    rm "$counts/pid"
done
cmp "$counts/of.10" "$counts/of.1000"
echo "strace: the same calls"
