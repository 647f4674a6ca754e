#!/usr/bin/env bash
# Every check, cheap ones first; the first that fails ends it.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
# Two cores run several processes at once here: one thread each is quickest.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export HF_HUB_OFFLINE=1 WANDB_MODE=offline RAY_USAGE_STATS_ENABLED=0

check() {
    printf '\n[check] %s\n' "$*"
    "$@" </dev/null
}
check ruff format --check .
check ruff check .
check lint-imports
check pyrefly check
check hadolint docker/cpu.Dockerfile docker/gpu.Dockerfile
[ "${1:-all}" = lint ] && exit
check pytest --durations=10 --numprocesses=2 tests/unit
# Dozens of processes on a shared machine: what fails is run once more, and both attempts are shown.
check pytest --durations=20 --reruns=1 --rerun-show-tracebacks \
    tests/integration tests/cluster tests/gpu
