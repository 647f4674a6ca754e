#!/usr/bin/env bash
# Renders the bases from their recipes, into this folder or another; a unit test holds them equal.
set -euo pipefail
out=${1:-$(dirname "$0")}
rlpost submit recipe=gsm8k_8gpu cluster=kuberay cluster.name=gsm8k cluster.image=rlpost:0.1.0-gpu out="$out/base"
rlpost submit recipe=math_64gpu cluster=kuberay cluster.name=math cluster.image=rlpost:0.1.0-gpu \
    cluster.node_cpus=96 cluster.shm_gib=32 cluster.storage_gib=4000 out="$out/64gpu"
