#!/usr/bin/env bash
# Drives the example `kv` with Redis's own tools: loads the words of the crates' sources, lets
# redis-benchmark work on the servers while they are killed one after the other, and sees that
# every word still has its count.
#
# usage: ci/kv.sh [KILLS] [PORT]    needs target/release/examples/kv
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

kills=${1:-8} port=${2:-17380}
ci/install.sh redis-benchmark:redis-tools pkill:procps
work=$(mktemp -d)
target/release/examples/kv --port "$port" --processes 3 --mib 512 --directory "$work/run" >"$work/log" &
kv=$!
finish() {
    kill "$kv" "${load:-$kv}" 2>/dev/null || true
    wait "$kv" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
ask() { redis-cli -p "$port" "$@"; }
die() {
    echo "kv: $*" >&2
    cat "$work/log" >&2
    exit 1
}
for ((i = 0; i < 200; i++)); do
    [[ $(ask PING 2>/dev/null) != PONG ]] || break
    sleep 0.05
done

# Each word and how often it is there, as lines "word count".
find "${CARGO_HOME:-$HOME/.cargo}/registry/src" -name '*.rs' -print0 | sort -z | sed -zn '1,4000p' |
    xargs -0 cat | LC_ALL=C tr -cs 'A-Za-z0-9_' '\n' | LC_ALL=C awk '
        length > 0 && length < 200 { count[$0]++ }
        END { for (word in count) print word, count[word] }' >"$work/words"
words=$(wc -l <"$work/words")
LC_ALL=C awk '{ printf "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n",
    length($1) + 5, "word:" $1, length($2), $2 }' "$work/words" |
    ask --pipe >"$work/pipe" || die "the words are not taken: $(cat "$work/pipe")"
grep -q "errors: 0, replies: $words\$" "$work/pipe" || die "$(cat "$work/pipe")"
[[ $(ask DBSIZE) == "$words" ]] || die "$words words became $(ask DBSIZE)"

# A connection that is cut off ends redis-benchmark, so another takes its place.
benchmark() { redis-benchmark -p "$port" -t set,get,incr -r 10000 -c 16 -P 4 -q "$@"; }
while true; do benchmark -n 1000000 || true; done >/dev/null 2>&1 &
load=$!
for ((i = 0; i < kills; i++)); do
    sleep 0.5
    pkill --signal KILL --parent "$kv" --oldest || die "there is no server"
    [[ $(ask SET "after:$i" "$i") == OK && $(ask INCR kills) == $((i + 1)) ]] ||
        die "no answer after kill $((i + 1))"
done
# Its child as well.
pkill --parent "$load" || true
kill "$load"
wait "$load" 2>/dev/null || true

LC_ALL=C awk '{ print "GET word:" $1 }' "$work/words" | ask >"$work/found"
cut -d ' ' -f 2 "$work/words" | cmp - "$work/found" || die "a word's count is lost"
[[ $(ask GET kills) == "$kills" && $(ask DEL kills kills) == 1 && $(ask EXISTS kills) == 0 ]] ||
    die "a key is not what it was"
benchmark -n 100000 2>/dev/null | tr '\r' '\n' | grep 'requests per second' || die "no figures"
echo "kv: $words words, $kills servers killed under load, none lost"
