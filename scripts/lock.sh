#!/usr/bin/env bash
# Write requirements/cpu.txt, gpu.txt and dev.txt anew from pyproject.toml; versions already locked
# are kept unless `--upgrade` or `--upgrade-package NAME` is given.
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
    .venv/bin/uv pip compile pyproject.toml --extra tasks --python-version 3.11 \
        --no-emit-index-url --no-emit-find-links --annotation-style line \
        --custom-compile-command "make lock" --quiet -o "$output" "$@"
    printf '[lock] %s: %s packages\n' "$output" "$(grep -c '==' "$output")"
}
on_cpu=(--extra cpu --override requirements/cpu-overrides.txt --universal "${backend[@]}")
compile requirements/cpu.txt "${on_cpu[@]}" "$@"
compile requirements/dev.txt "${on_cpu[@]}" --extra dev --constraint requirements/cpu.txt "$@"

# What pyproject.toml names has one version on CPUs and GPUs, but for torch's build; the rest is what
# vLLM's CUDA build asks for. PyPI's torch is the CUDA one; a folder of wheels may hold another.
unset UV_FIND_LINKS
named="$(mktemp)"
trap 'rm -f "$named"' EXIT
grep '(pyproject.toml)' requirements/cpu.txt | grep -v '^torch==' >"$named"
[ -f requirements/gpu.txt ] || grep -v '^torch==' requirements/cpu.txt >requirements/gpu.txt
compile requirements/gpu.txt --extra gpu --python-platform x86_64-manylinux_2_28 \
    --constraint "$named" "$@"
sed -i 's#-c /[^ ,]*, ##' requirements/gpu.txt
