#!/usr/bin/env bash
# Write requirements/cpu.txt and dev.txt anew from pyproject.toml; versions already locked are kept
# unless `--upgrade` or `--upgrade-package NAME` is given.
set -euo pipefail
cd "$(dirname "$0")/.."

find_links="$(.venv/bin/python -m pip config list 2>/dev/null |
    sed -n "s/^.*\.find-links='\(.*\)'\$/\1/p" | sort -u | head -n1)"
if [ -n "${UV_FIND_LINKS:-$find_links}" ]; then
    export UV_FIND_LINKS="${UV_FIND_LINKS:-$find_links}"
    backend=()
else
    backend=(--torch-backend cpu)
fi

compile() {
    local output="$1"
    shift
    .venv/bin/uv pip compile pyproject.toml --extra cpu --extra tasks \
        --override requirements/cpu-overrides.txt --universal --python-version 3.11 \
        --no-emit-index-url --no-emit-find-links --annotation-style line \
        --custom-compile-command "make lock" --quiet "${backend[@]}" -o "$output" "$@"
    printf '[lock] %s: %s packages\n' "$output" "$(grep -c '==' "$output")"
}
compile requirements/cpu.txt "$@"
compile requirements/dev.txt --extra dev --constraint requirements/cpu.txt "$@"
