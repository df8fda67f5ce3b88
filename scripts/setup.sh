#!/usr/bin/env bash
# Make .venv and install this package and its pinned dependencies into it. Does nothing when that has been done.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

STAMP=.venv/.installed
LOG=.venv/setup.log
INPUTS=(pyproject.toml setup.py constraints.txt)

up_to_date() {
    [[ -f $STAMP ]] && .venv/bin/python -I -c '' 2>/dev/null || return 1
    for input in "${INPUTS[@]}"; do
        [[ $input -nt $STAMP ]] && return 1
    done
    # An environment that was moved or copied still points to where it was made.
    [[ "$(<"$STAMP")" == "$PWD" ]]
}

up_to_date && exit 0

# Two calls at the same time: the second waits, and then finds the work done.
if command -v flock >/dev/null 2>&1; then
    exec 9<setup.py
    flock 9
    up_to_date && exit 0
fi

if ! .venv/bin/python -I -c 'import sys, pip; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
    python=$(bash scripts/find_python.sh)
    echo "Making .venv with $python"
    rm -rf .venv
    "$python" -m venv .venv
fi

rm -f "$STAMP"
started=$SECONDS
echo "Installing into .venv: about two minutes and 5 GB the first time (details in $LOG)"
if ! .venv/bin/python -m pip install -c constraints.txt -e '.[test]' >"$LOG" 2>&1 </dev/null; then
    # pip's own explanation starts at its first ERROR line; without one the end of the log is the best there is.
    sed -n '/^ *ERROR/,$p' "$LOG" | grep . | head -n 20 | grep . >&2 || tail -n 15 "$LOG" >&2
    echo "make setup: pip failed; the whole story is in $LOG" >&2
    exit 1
fi
pwd >"$STAMP"
echo "Installed in $((SECONDS - started)) s"
