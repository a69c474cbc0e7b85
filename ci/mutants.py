#!/usr/bin/env python3
"""Applies each mutant of a list to a copy of the sources and sees that its model fails. As many at a
time as there are CPUs, each with a copy and builds of its own.

A mutant is a block of lines, separated from the next by an empty line:

    file src/path.rs
    model path::of::the::test
    nth 0                      # which occurrence, if not the only one
    - text of the source
    + text that replaces it    # none: it is taken out

With two numbers behind the list, from the first of them on and each of so many.

Run by ci/loom.sh, which sets the environment of a loom build.
"""

import concurrent.futures
import os
import pathlib
import queue
import shutil
import subprocess
import sys

COPIES = pathlib.Path("target/mutants")
PARTS = ["Cargo.toml", "Cargo.lock", "README.md", "src", "benches", "examples", "tests"]
# Each build goes on from the one before: another line in one file.
ENVIRONMENT = os.environ | {"CARGO_INCREMENTAL": "1", "CARGO_BUILD_JOBS": "2"}


def blocks(path):
    """The mutants of the list, as dictionaries."""
    text = "\n".join(
        line for line in path.read_text().splitlines() if not line.startswith("#")
    )
    for block in text.split("\n\n"):
        fields = {"-": [], "+": []}
        for line in block.strip("\n").splitlines():
            key, _, value = line.partition(" ")
            if key in fields and isinstance(fields[key], list):
                fields[key].append(value)
            else:
                fields[key] = value
        if fields["-"]:
            yield fields


def replaced(source, old, new, nth):
    """The source with the nth occurrence of `old` replaced; None if there is none."""
    at = -1
    for _ in range(nth + 1):
        at = source.find(old, at + 1)
        if at < 0:
            return None
    return source[:at] + new + source[at + len(old) :]


def survives(mutant, copy):
    """Why this mutant is no good, or None if its model noticed it."""
    file = pathlib.Path(mutant["file"])
    source = file.read_text()
    old, new = "\n".join(mutant["-"]), "\n".join(mutant["+"])
    if "nth" not in mutant and source.count(old) != 1:
        return f"the text is there {source.count(old)} times"
    changed = replaced(source, old, new, int(mutant.get("nth", 0)))
    if changed is None:
        return "the text is not there"
    (copy / file).write_text(changed)
    command = ["cargo", "test", "--quiet", "--profile", "loom", "--lib", "--", "--exact"]
    command.append(mutant["model"])
    environment = ENVIRONMENT | {"CARGO_TARGET_DIR": str((copy / "target").absolute())}
    run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    shutil.copyfile(file, copy / file)
    # A deadlock that loom finds ends in an abort.
    if "test result: FAILED" in run.stdout or "SIGABRT" in run.stderr:
        return None
    if "test result: ok. 0 passed" in run.stdout:
        return "there is no such model"
    if "test result: ok" in run.stdout:
        return "the model did not notice"
    return "it does not build:\n" + run.stderr[-2000:]


def make_copy(number):
    """A copy of the sources, and of what was built of the models, dependencies among it."""
    copy = COPIES / str(number)
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    built = os.environ.get("CARGO_TARGET_DIR")
    # A folder of its own: the usual one holds the copies too.
    if built and pathlib.Path(built).is_dir():
        shutil.copytree(built, copy / "target", symlinks=True)
    for name in PARTS:
        path = pathlib.Path(name)
        if path.is_dir():
            shutil.copytree(path, copy / path)
        elif path.exists():
            shutil.copyfile(path, copy / path)
    return copy


def main():
    copies = queue.Queue()
    workers = os.cpu_count() or 1
    for number in range(workers):
        copies.put(make_copy(number))

    def judge(mutant):
        copy = copies.get()
        try:
            return survives(mutant, copy)
        finally:
            copies.put(copy)

    mutants = list(blocks(pathlib.Path(sys.argv[1])))
    if len(sys.argv) > 2:
        mutants = mutants[int(sys.argv[2]) :: int(sys.argv[3])]
    noticed = failed = 0
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for mutant, reason in zip(mutants, pool.map(judge, mutants)):
            name = f"{mutant['file']}: {mutant['-'][0].strip()} ({mutant['model']})"
            if reason is None:
                noticed += 1
                print(f"noticed: {name}", flush=True)
            else:
                failed += 1
                print(f"SURVIVED: {name}: {reason}", flush=True)
    print(f"mutants: {noticed} passed, {failed} failed")
    sys.exit(1 if failed or not noticed else 0)


if __name__ == "__main__":
    main()
