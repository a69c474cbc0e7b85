#!/usr/bin/env bash
# Builds a user of per-CPU memory (ci/elf) in the ways that people ship, has every window in each
# file checked, and runs it: the executable, and its shared library, closed under its threads.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

files=()

# build WAY PROFILE LTO RUSTFLAGS [FLAG...]: adds its executable, which alone is built
# with the last flags, and its shared library.
build() {
    local way=$1 profile=$2 folder=$PWD/target/elf/$1 out
    out=$folder/${profile/dev/debug}
    CARGO_TARGET_DIR=$folder CARGO_PROFILE_RELEASE_LTO=$3 RUSTFLAGS=$4 \
        cargo rustc --quiet --manifest-path ci/elf/Cargo.toml --profile "$profile" \
        --bin uses-counters -- "${@:5}" || return
    "$out/uses-counters" "$out/deps/libuses_counters.so"
    files+=("$out/uses-counters" "$out/deps/libuses_counters.so")
    echo "elf: built $way"
}

gc='-C link-arg=-Wl,--gc-sections'
icf='-C link-arg=-Wl,--icf=all'

build debug dev off ''
build release release off ''
build thin release thin "$gc"
build fat release fat "$gc"
# Only some linkers fold code.
if ! build folded release off "$gc $icf" 2>/dev/null; then
    echo "elf: skip: --icf=all: this linker does not know it"
else
    build fat-folded release fat "$gc $icf"
fi
# The linker of binutils; the executable without relocations.
build fixed release off '-C linker-features=-lld' -C relocation-model=static

operations=load_add_store_u64,gs_load_add_store_u64,gs_restripe
for shape in Indexed Striped; do
    operations+=,$shape::list_push,$shape::list_pop,$shape::load_add_store_u32
done
UNMERGED_ELF_FILES=$(IFS=:; echo "${files[*]}") \
    UNMERGED_ELF_OPERATIONS=$operations \
    cargo test --test windows every_descriptor -- --nocapture
echo "elf: ${#files[@]} files, all clean"
