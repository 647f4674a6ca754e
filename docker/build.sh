#!/usr/bin/env bash
# Build the images: `docker/build.sh [cpu] [gpu] [-- OPTIONS OF THE BUILDER]`; both if none is named.
# What pip is told on this machine (an index, a folder of wheels, a certificate) the build is told
# too, as secrets and mounts, which leave nothing in the image.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '[images] %s\n' "$*"; }
die() {
    printf '[images] cannot build: %s\n' "$*" >&2
    exit 1
}

lanes=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    [ -f "docker/$1.Dockerfile" ] || die "there is no docker/$1.Dockerfile: there are cpu and gpu"
    lanes+=("$1")
    shift
done
[ "${1:-}" != -- ] || shift
[ ${#lanes[@]} -gt 0 ] || lanes=(cpu gpu)

# --- The builder ------------------------------------------------------------------------------
if command -v docker >/dev/null && docker buildx version >/dev/null 2>&1 && docker info >/dev/null 2>&1
then
    build=(docker buildx build --load)
elif command -v podman >/dev/null; then
    build=(podman build --format docker)
elif command -v buildah >/dev/null; then
    build=(buildah build --format docker)
elif command -v docker >/dev/null; then
    die "docker is here, but its daemon or its buildx does not answer: start it (docker info,
        docker buildx version), or install podman or buildah"
else
    die "docker, podman and buildah are all missing: install one (on Debian: apt-get install buildah)"
fi
say "building ${lanes[*]} with ${build[*]}"

# --- What this machine tells pip --------------------------------------------------------------
python=.venv/bin/python
[ -x "$python" ] || python=python3
pip_setting() {
    "$python" -m pip config list 2>/dev/null |
        sed -n "s/^.*\.$1='\(.*\)'\$/\1/p" | sed 's/\\n/ /g' | tr -s ' ' '\n' | sort -u
}
secrets="$(mktemp -d)"
trap 'rm -rf "$secrets"' EXIT
{
    echo "[global]"
    index="$(pip_setting index-url | tail -n1)"
    [ -z "$index" ] || echo "index-url = $index"
} >"$secrets/pip.conf"
build+=(--secret "id=pip_conf,src=$secrets/pip.conf")
certificates="$(pip_setting cert | tail -n1)"
if [ -n "$certificates" ]; then
    echo "cert = /run/secrets/ca_bundle" >>"$secrets/pip.conf"
    build+=(--secret "id=ca_bundle,src=$certificates")
fi
links=()
for place in $(pip_setting find-links); do
    if [ -d "$place" ]; then
        build+=(--build-context "wheels=$place")
        links+=(/wheels)
    else
        links+=("$place")
    fi
done
[ ${#links[@]} -eq 0 ] || echo "find-links = ${links[*]}" >>"$secrets/pip.conf"

# --- The images -------------------------------------------------------------------------------
version="$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)"
revision="$(git rev-parse HEAD 2>/dev/null || echo unknown)"
for lane in "${lanes[@]}"; do
    SECONDS=0
    "${build[@]}" --file "docker/$lane.Dockerfile" --tag "rlpost:$version-$lane" \
        --build-arg "VERSION=$version" --build-arg "REVISION=$revision" "$@" .
    say "rlpost:$version-$lane in $SECONDS s"
done
