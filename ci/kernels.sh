#!/usr/bin/env bash
# Runs the crate's test binaries under Debian's own kernels, in QEMU.
# `ci/kernels.sh --help` tells more.
set -euo pipefail

usage() {
    cat <<'EOF'
usage: ci/kernels.sh [5.10] [6.1] [6.12] [7] [6.12/hard]

Builds the crate's tests and examples, boots each named kernel series (all
if none is named) in QEMU by software emulation, and runs every test
binary there as an ordinary user. A series with "/hard" behind it is booted
without FSGSBASE, with two NUMA nodes, and runs the tests of per-CPU memory
while a CPU goes offline and comes back. The kernels are Debian's packages, taken from
the archive that this machine's apt is set up for and kept in a cache, with lists
of their own; apt's configuration is left alone.

One line a kernel tells the counts and which features the tests found missing,
and the last line sums up. The exit status is 0 only if every guest finished
without a failed test and without missing a feature that its kernel must have.
Full serial logs, with the output of the example `doctor`: target/kernels/.

environment:
  UNMERGED_KERNELS_CACHE    folder of the kernels (~/.cache/unmerged-kernels)
  UNMERGED_KERNELS_TIMEOUT  seconds that one guest may take (900)
  UNMERGED_KERNELS_REFRESH  1: ask for a newer package now, not once a week
  UNMERGED_KERNELS_NUMA     1: give the guest two NUMA nodes
  UNMERGED_KERNELS_CARGO    further arguments for cargo, as --all-features
  UNMERGED_TESTS            run those alone whose file names begin so: arch:futex2
  UNMERGED_PERCPU           handed on to the tests
  RUST_BACKTRACE            handed on to the tests

Needs Debian on x86-64. As root it installs what is missing (QEMU, cpio,
busybox, jq); otherwise those must be there.
EOF
}

all_series=(5.10 6.1 6.12 7 6.12/hard)
cache=${UNMERGED_KERNELS_CACHE:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/unmerged-kernels}
seconds=${UNMERGED_KERNELS_TIMEOUT:-900}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

note() { printf '%s\n' "kernels: $*" >&2; }
die() {
    note "$*"
    exit 2
}

# --- What differs between the kernels -------------------------------------

# Suites to look for a series in, the likeliest first.
suites_of() {
    case ${1%/hard} in
        5.10) echo bullseye ;;
        6.1) echo bookworm ;;
        6.12) echo trixie ;;
        7) echo sid forky ;;
        *) return 1 ;;
    esac
}

# Features that a series has, so that a test may not skip over them there.
require_of() {
    local list=rseq,fsgsbase,ptrace,two-cpus,membarrier,membarrier-rseq,membarrier-global,pidfd,seal-future-write,schedstat
    case $1 in 6.1 | 6.12* | 7) list+=,futex-waitv ;; esac
    case $1 in 6.12* | 7) list+=,memfd-noexec,futex2,rseq-extended,io-uring,collapse-for-others ;; esac
    case $1 in 7) list+=,futex-numa,rseq-v2,huge-pages ;; esac
    case $1 in */hard) list=${list/,fsgsbase/},numa ;; esac
    echo "$list"
}

# --- Kernels ---------------------------------------------------------------

# Prints "label|repository|file of the source entry" for Debian's archives that
# apt is set up for. Release info tells them from others with like names.
list_archives() {
    # shellcheck disable=SC2016 # the placeholders are apt's
    apt-get indextargets \
        --format '$(ORIGIN)|$(COMPONENT)|$(LABEL)|$(RELEASE)|$(REPO_URI)|$(SOURCESENTRY)' \
        'Created-By: Packages' |
        awk -F'|' '$1 == "Debian" && $2 == "main" && $4 !~ /backports/ {
            sub(/:[0-9]+$/, "", $6)
            print $3 "|" $5 "|" $6
        }'
}

# Prints the keyring that a source file names; without one apt's own serves.
keyring_in() {
    local keyring=''
    if [[ -r $1 ]]; then
        keyring=$(sed -nE 's/^[Ss]igned-[Bb]y:[[:space:]]*(\/[^[:space:]]+).*/\1/p
            s/^deb.*[[ ]signed-by=(\/[^] ]+).*/\1/p' "$1" | head -n 1)
    fi
    if [[ -z $keyring && -r /usr/share/keyrings/debian-archive-keyring.gpg ]]; then
        keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    fi
    echo "$keyring"
}

# write_source FILE LABEL SUITE: adds SUITE of the configured archive LABEL.
write_source() {
    local archive uri keyring
    archive=$(list_archives | awk -F'|' -v label="$2" '$1 == label { print; exit }')
    [[ -n $archive ]] || return 1
    IFS='|' read -r _ uri keyring <<<"$archive"
    keyring=$(keyring_in "$keyring")
    {
        printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n' "$uri" "$3"
        # Nothing but the package list: no translations, no component metadata.
        printf 'Architectures: amd64\nTargets: Packages\n'
        [[ -z $keyring ]] || printf 'Signed-By: %s\n' "$keyring"
        echo
    } >>"$1"
}

# write_apt_config FOLDER SUITE: an apt of its own in FOLDER, which leaves the
# system's alone.
write_apt_config() {
    mkdir -p "$1/lists/partial" "$1/cache/archives/partial"
    : >"$1/status"
    : >"$1/archive.sources"
    write_source "$1/archive.sources" Debian "$2" || {
        note "apt on this machine has no lists of Debian's archive (run apt-get update?)"
        return 1
    }
    # Updates to a released suite are in the security archive, if at all.
    [[ $2 == sid ]] || write_source "$1/archive.sources" Debian-Security "$2-security" || true
    {
        # Hooks would act on the system's own lists and caches.
        echo '#clear APT::Update::Pre-Invoke;'
        echo '#clear APT::Update::Post-Invoke;'
        echo '#clear APT::Update::Post-Invoke-Success;'
        echo '#clear APT::Architectures;'
        printf '%s "%s";\n' \
            APT::Architecture amd64 APT::Default-Release '' \
            Dir::State "$1" Dir::State::lists "$1/lists" Dir::State::status "$1/status" \
            Dir::Cache "$1/cache" Dir::Cache::archives "$1/cache/archives" \
            Dir::Etc::sourcelist "$1/archive.sources" Dir::Etc::sourceparts /dev/null \
            Dir::Etc::preferences /dev/null Dir::Etc::preferencesparts /dev/null \
            Acquire::Languages none
        # An old suite's Release file is signed but no longer renewed.
        echo 'Acquire::Check-Valid-Until "false";'
        # apt's own user cannot get into a private cache folder.
        ((EUID != 0)) || echo 'APT::Sandbox::User "root";'
    } >"$1/apt.conf"
}

# show_versions FOLDER PACKAGE: "version depends" of every version on offer.
show_versions() {
    apt-cache -c "$1/apt.conf" show "$2" 2>/dev/null | awk '
        function out() { if (version) print version, depends; version = depends = "" }
        /^Package:/ { out() }
        /^Version:/ { version = $2 }
        /^Depends:/ { depends = $0 }
        END { out() }'
}

# find_package FOLDER SERIES: "package version" that has the kernel file. The
# metapackage names the newest kernel. The cloud flavour lacks drivers only.
find_package() {
    local meta image binary name version
    for meta in linux-image-cloud-amd64 linux-image-amd64; do
        image=$(show_versions "$1" "$meta" | awk -v start="$2." 'index($1, start) == 1' |
            sort -V | tail -n 1 | grep -oE 'linux-image-[0-9][^ ,|]*' | head -n 1) || continue
        # From 7 on the kernel file is in a package that the image depends on.
        binary=$(show_versions "$1" "$image" | grep -oE 'linux-binary-[0-9][^ ,|]*' | head -n 1) || true
        for name in ${binary:+"$binary" "${binary/binary-/binary-unsigned-}"} "$image" "$image-unsigned"; do
            version=$(show_versions "$1" "$name" | sort -V | tail -n 1 | cut -d ' ' -f 1)
            [[ -z $version ]] || {
                echo "$name $version"
                return 0
            }
        done
    done
    return 1
}

# look_up_package SERIES FOLDER LOG: finds it in the first suite that has it.
look_up_package() {
    local suite
    # A fresh machine may have no lists yet, which tell where the archive is.
    if ((EUID == 0)) && [[ -z $(list_archives) ]]; then
        apt-get update >>"$3" 2>&1 || true
    fi
    for suite in $(suites_of "$1"); do
        rm -rf "$2"
        write_apt_config "$2" "$suite" || return 1
        # A missing part is no matter as long as the package is found below.
        apt-get -c "$2/apt.conf" update >>"$3" 2>&1 || true
        find_package "$2" "$1" && return 0
    done
    note "no kernel $1 found: has the suite left the archive that apt is set up for?"
    grep -E '^(E|W|Err):?' "$3" | tail -n 5 >&2 || true
    return 1
}

# download_kernel FOLDER PACKAGE VERSION TARGET LOG
download_kernel() {
    local unpacked=$1/unpacked file
    rm -rf "$unpacked"
    mkdir -p "$unpacked" "$4"
    note "downloading $2 $3"
    (cd "$unpacked" && apt-get -c "$1/apt.conf" -q download "$2=$3") >>"$5" 2>&1 || {
        note "cannot download $2: $(grep -E '^E:' "$5" | tail -n 1)"
        return 1
    }
    # A package has thousands of modules: take out the one file.
    dpkg-deb --fsys-tarfile "$unpacked"/*.deb |
        tar -x -C "$unpacked" --wildcards '*/vmlinuz*' || return 1
    file=$(find "$unpacked" -type f -name 'vmlinuz*' | head -n 1)
    [[ -n $file ]] || {
        note "$2 has no kernel file"
        return 1
    }
    # The last step, so that a broken-off download leaves no half of a kernel.
    mv "$file" "$4/vmlinuz"
}

# fetch_kernel SERIES LOG: prints the path of the kernel file.
fetch_kernel() {
    local home=$cache/$1 current='' package version found lock
    mkdir -p "$home"
    exec {lock}>"$home/lock"
    flock "$lock"
    [[ ! -r $home/current ]] || current=$home/$(<"$home/current")/vmlinuz
    if [[ -r $current && ${UNMERGED_KERNELS_REFRESH:-0} != 1 &&
        -n $(find "$home/current" -mtime -7) ]]; then
        echo "$current"
        return 0
    fi
    : >"$2"
    if found=$(look_up_package "$1" "$home/apt" "$2"); then
        read -r package version <<<"$found"
        if [[ -r $home/${package}_$version/vmlinuz ]] ||
            download_kernel "$home/apt" "$package" "$version" "$home/${package}_$version" "$2"; then
            echo "${package}_$version" >"$home/current"
            current=$home/${package}_$version/vmlinuz
            # The lists would be out of date next time; older kernels are spent.
            find "$home" -mindepth 1 -maxdepth 1 -type d ! -name "${package}_$version" \
                -exec rm -rf {} +
            echo "$current"
            return 0
        fi
    fi
    rm -rf "$home/apt"
    [[ -r $current ]] || return 1
    note "staying with the kernel $1 in the cache"
    echo "$current"
}

# --- Initramfs -------------------------------------------------------------

# Prints "kind name file" for each executable that cargo built.
list_executables() {
    jq -r 'select(.executable != null) |
        (if .profile.test then "test" else .target.kind[0] end) as $use |
        [$use, .target.kind[0] + "-" + .target.name, .target.name, .executable] | @tsv'
}

# copy_program FILE TARGET: without debug information, which only costs memory
# in the guest, and with the shared libraries at their own paths.
copy_program() {
    local library
    [[ ! -e $2 ]] || die "two programs are called $(basename "$2")"
    strip --strip-debug -o "$2" "$1" 2>/dev/null || cp -L "$1" "$2"
    chmod 755 "$2"
    # ldd fails on a static program, which needs nothing.
    for library in $({ ldd "$1" 2>/dev/null || true; } | grep -oE '(^|[[:space:]])/[^ ]+'); do
        [[ -e $root$library ]] || install -D -m 755 "$library" "$root$library"
    done
}

# Cargo speaks up on its standard error only, and so only if something is amiss.
run_cargo() {
    # shellcheck disable=SC2086 # several arguments are wanted
    cargo "$@" --quiet --message-format=json-render-diagnostics ${UNMERGED_KERNELS_CARGO:-}
}

build_initramfs() {
    local use name plain file
    mkdir -p "$root"/{bin,dev,examples,etc,home,proc,run,sys,tests,tmp,usr/bin}
    run_cargo test --no-run >"$work/built"
    run_cargo build --examples >>"$work/built"
    while IFS=$'\t' read -r use name plain file; do
        case $use in
            test) copy_program "$file" "$root/tests/$name" ;;
            # cargo test builds the examples too and names the same files.
            example) [[ -e $root/examples/$plain ]] || copy_program "$file" "$root/examples/$plain" ;;
        esac
    done < <(list_executables <"$work/built")
    binaries=$(find "$root/tests" -type f | wc -l)
    ((binaries)) || die "cargo built no test binary"

    copy_program "$(command -v busybox)" "$root/bin/busybox"
    copy_program "$(command -v setpriv)" "$root/usr/bin/setpriv"
    install -m 755 "$here/kernels/init" "$root/init"
    # Uncompressed: unpacking under emulation costs more than reading.
    (cd "$root" && find . -mindepth 1 | cpio -o -H newc -R 0:0 --quiet) >"$work/initramfs"
    rm -rf "$root"
}

# --- Guest -----------------------------------------------------------------

# boot_guest SERIES KERNEL REQUIRE LOG: its status is 124 or 137 if the time ran out.
boot_guest() {
    # On a busy machine an emulated timer may look as if it did not work.
    local variable line="console=ttyS0 quiet panic=-1 no_timer_check UNMERGED_REQUIRE=$3" numa=() hard=0
    case $1 in
        */hard)
            hard=1
            line+=' nofsgsbase UNMERGED_HOTPLUG=1'
            line+=" UNMERGED_TESTS=${UNMERGED_TESTS:-arch:lock:percpu:ring:stack:windows}"
            ;;
        *) [[ -z ${UNMERGED_TESTS:-} ]] || line+=" UNMERGED_TESTS=$UNMERGED_TESTS" ;;
    esac
    # A few huge pages: 2 MiB each, of the guest's 1 GiB.
    case $1 in 7) line+=' hugepages=16' ;; esac
    # The slowest, which are of the examples, on the oldest and the newest alone.
    case $1 in 6.1 | 6.12) line+=' UNMERGED_WITHOUT=pipeline:wordcount' ;; esac
    # The kernel hands what it does not know on to init as environment.
    for variable in UNMERGED_PERCPU RUST_BACKTRACE; do
        [[ -z ${!variable:-} ]] || line+=" $variable=${!variable}"
    done
    # shellcheck disable=SC2054 # the commas are QEMU's
    [[ ${UNMERGED_KERNELS_NUMA:-$hard} != 1 ]] || numa=(
        -object memory-backend-ram,id=m0,size=512M -numa node,nodeid=0,cpus=0-1,memdev=m0
        -object memory-backend-ram,id=m1,size=512M -numa node,nodeid=1,cpus=2-3,memdev=m1
    )
    # In the foreground, so that an interrupt from the terminal ends QEMU too.
    timeout --foreground --kill-after=10 "$seconds" qemu-system-x86_64 \
        -accel tcg,thread=multi -cpu max -smp 4 -m 1024 "${numa[@]}" \
        -nographic -monitor none -serial stdio -vga none -nic none -no-reboot \
        -kernel "$2" -initrd "$work/initramfs" -append "$line" \
        </dev/null >"$4" 2>&1
}

# read_log REQUIRE: from a serial log makes a line "passed failed skipped", the
# kernel's line, and lines "! binary reason" for what is wrong ("-" for none).
read_log() {
    tr -d '\r' | awk -v require="$1" '
        function wrong(name, reason) { reasons[++wrongs] = "! " name " " reason }
        function close_binary(status) {
            passed += p; failed += f; ignored += i
            if (f) wrong(name, f " failed")
            else if (status != 0) { failed++; wrong(name, "ended with status " status " and no failed test") }
            else if (!result) { failed++; wrong(name, "printed no result") }
        }
        # The line of one run: a test may run its own binary again, so the last
        # one counts.
        function count(word, text) {
            return match(text, "[0-9]+ " word) ? substr(text, RSTART, RLENGTH) + 0 : 0
        }
        BEGIN { split(require, names, ","); for (n in names) required[names[n]] }
        $1 == "@@unmerged" && $2 == "kernel" { kernel = $3; next }
        $1 == "@@unmerged" && $2 == "begin" { name = $3; inside = 1; result = p = f = i = 0; next }
        $1 == "@@unmerged" && $2 == "end" { binaries++; inside = 0; close_binary($4); next }
        $1 == "@@unmerged" && $2 == "end-doctor" {
            # Its status may tell of a lack; only a crash is wrong.
            if ($3 >= 126) { failed++; wrong("-", "doctor ended with status " $3) }
            next
        }
        $1 == "@@unmerged" && $2 == "done" { finished = 1; next }
        !inside { next }
        match($0, /test result: .*/) {
            result = 1; text = substr($0, RSTART)
            p = count("passed", text); f = count("failed", text); i = count("ignored", text)
        }
        match($0, /skip: [a-z0-9-]+: .*/) {
            skipped++
            feature = text = substr($0, RSTART + 6, RLENGTH - 6)
            sub(/:.*/, "", feature); sub(/^[^:]*: */, "", text); sub(/ +$/, "", text)
            if (!(feature in lacked)) {
                lacked[feature]
                lacks = lacks (lacks ? ", " : "; lacks ") feature " (" text ")"
                if (feature in required) late[feature] = name
            }
        }
        END {
            if (!finished) {
                failed++
                if (inside) wrong(name, "did not end"); else wrong("-", "the guest did not finish")
            } else if (!passed && !failed) { failed++; wrong("-", "no test was run") }
            for (feature in late) {
                # The test that panicked over it is counted already.
                if (!failed) alone = 1
                wrong(late[feature], "skipped " feature ", which this kernel must have")
            }
            if (alone) for (feature in late) failed++
            printf "%d %d %d\n", passed, failed, skipped
            printf "kernel %s: %d binaries, %d passed, %d failed, %d skipped%s%s\n", kernel ? kernel : "?",
                binaries, passed, failed, skipped, ignored ? ", " ignored " ignored" : "", lacks
            for (n = 1; n <= wrongs; n++) print reasons[n]
        }'
}

# show_failure LOG NAME: the end of what a binary printed ("-": of the log).
show_failure() {
    printf -- '--- %s %s\n' "$1" "${2#-}"
    if [[ $2 == - ]]; then
        tail -n 40 "$1"
    else
        sed -n "/@@unmerged begin $2\r*\$/,/@@unmerged end $2 /p" "$1" | tail -n 40
    fi | tr -d '\r'
    echo '---'
}

# test_kernel SERIES: adds to the sums.
test_kernel() {
    local log=$logs/${1/\//-}.log kernel require status=0 lines line name
    require=$(require_of "$1")
    if ! kernel=$(fetch_kernel "${1%/hard}" "${log%.log}.apt.log"); then
        echo "kernel $1: not run, no kernel to be had"
        ((failed += 1))
        return 0
    fi
    boot_guest "$1" "$kernel" "$require" "$log" || status=$?
    mapfile -t lines < <(read_log "$require" <"$log")
    read -r p f s <<<"${lines[0]}"
    ((passed += p, failed += f, skipped += s)) || true
    lines[1]=${lines[1]/kernel \?:/kernel $1:}
    case $1 in */hard) lines[1]=${lines[1]/:/ (hard):} ;; esac
    echo "${lines[1]}"
    case $status in
        0) ;;
        124 | 137) note "kernel $1: stopped after $seconds s" ;;
        *) note "kernel $1: QEMU ended with status $status" ;;
    esac
    for line in "${lines[@]:2}"; do
        note "kernel $1: ${line#! }"
    done
    for name in $(printf '%s\n' "${lines[@]:2}" | awk '!seen[$2]++ { print $2 }'); do
        show_failure "$log" "$name" >&2
    done
}

clean_up() { rm -rf "$work"; }

main() {
    local series chosen=()
    for series in "$@"; do
        case $series in
            -h | --help)
                usage
                exit 0
                ;;
        esac
        suites_of "$series" >/dev/null || {
            usage >&2
            die "no such kernel series: $series"
        }
        chosen+=("$series")
    done
    ((${#chosen[@]})) || chosen=("${all_series[@]}")
    [[ $(uname -m) == x86_64 ]] || die "the guests are x86-64 and so must this machine be"
    command -v apt-get >/dev/null || die "the kernels are Debian's packages: needs apt"
    # Folders made for the guest must be open to its ordinary user.
    umask 022

    cd "$here/.."
    work=$(mktemp -d)
    trap clean_up EXIT
    root=$work/root
    ci/install.sh qemu-system-x86_64:qemu-system-x86 cpio:cpio busybox:busybox-static jq:jq
    logs=$(cargo metadata --no-deps --format-version 1 | jq -r .target_directory)/kernels
    mkdir -p "$logs"
    build_initramfs
    note "$binaries test binaries, initramfs of $(($(stat -c %s "$work/initramfs") >> 20)) MiB"

    passed=0 failed=0 skipped=0
    for series in "${chosen[@]}"; do
        test_kernel "$series"
    done
    echo "$passed passed, $failed failed"
    ((failed == 0 && passed > 0))
}

main "$@"
