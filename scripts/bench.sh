#!/usr/bin/env bash
# Run every benchmark of bench/, or those named; stop at the first that fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

shopt -s nullglob
benchmarks=("$@")
[[ ${#benchmarks[@]} -gt 0 ]] || benchmarks=(bench/*.py)
if [[ ${#benchmarks[@]} -eq 0 ]]; then
    echo "bench/ holds no benchmark" >&2
    exit 1
fi
for benchmark in "${benchmarks[@]}"; do
    case $(basename "$benchmark") in _*) continue ;; esac
    echo "== $benchmark"
    .venv/bin/python "$benchmark"
done
