#!/usr/bin/env bash
# Print the path of a Python 3.12 that works, or say on stderr what to do and fail.
#
# Candidates, in this order: $PYTHON, python3.12 on PATH, pyenv's versions, uv's. Each is tried, not trusted: a pyenv shim
# called python3.12 may exist and fail, and Debian's Python may lack the module that makes environments.
# Only 3.12: no other release has been seen to work with the pinned wheels.
set -euo pipefail

works() {
    "$1" -I -c 'import sys, ssl, ctypes, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1
}

take() {
    if [[ -n "$1" ]] && works "$1"; then
        "$1" -I -c 'import sys; print(sys.executable)'
        exit 0
    fi
}

if [[ -n "${PYTHON:-}" ]]; then
    take "$PYTHON"
    echo "PYTHON=$PYTHON is not a working Python 3.12 (with venv and ensurepip); set it to one, or leave it unset" >&2
    exit 1
fi

while read -r candidate; do take "$candidate"; done < <(type -aP python3.12 python3 || true)

for root in "${PYENV_ROOT:-}" "${HOME:-/root}/.pyenv"; do
    [[ -d "$root/versions" ]] || continue
    # shellcheck disable=SC2012  # ls sorts versions, and pyenv's folders have plain names
    while read -r candidate; do take "$candidate"; done < <(ls -1dv "$root"/versions/3.12*/bin/python 2>/dev/null | tac)
done

if command -v uv >/dev/null 2>&1; then
    take "$(uv python find --no-project 3.12 2>/dev/null || true)"
    echo "Fetching Python 3.12 with uv" >&2
    uv python install 3.12 >&2 && take "$(uv python find --no-project 3.12 2>/dev/null || true)"
fi

echo "no working Python 3.12 found; install python3.12 with its venv module, or uv, or run: make setup PYTHON=/path/to/python3.12" >&2
exit 1
