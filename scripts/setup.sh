#!/usr/bin/env bash
# Make .venv what the lock says: `scripts/setup.sh cpu` to run, `scripts/setup.sh gpu` to run on
# NVIDIA GPUs, `scripts/setup.sh dev` to work on the code too. What is already there is kept; when
# nothing has changed this takes a second. An image is built in two parts, the slow one first:
# `scripts/setup.sh cpu packages`, which needs no code, and `scripts/setup.sh cpu wheel`.
set -euo pipefail
cd "$(dirname "$0")/.."

lane="${1:-cpu}"
part="${2:-all}"
lock="requirements/$lane.txt"
venv=.venv
stamp="$venv/.rlpost-$lane"

say() { printf '[setup] %s\n' "$*"; }
die() {
    printf '[setup] cannot set up: %s\n' "$*" >&2
    exit 1
}

[[ "$lane" =~ ^(cpu|gpu|dev)$ ]] || die "there is no lane $lane: there are cpu, gpu and dev"
[[ "$part" =~ ^(all|packages|wheel)$ ]] || die "there is no part $part: there are packages and wheel"
# The folder is part of it: an environment copied or moved elsewhere is none.
fingerprint() {
    printf '%s %s' "$(cat "$1" pyproject.toml scripts/setup.sh | sha256sum | cut -d' ' -f1)" "$PWD"
}
if [ "$part" = all ] && [ -x "$venv/bin/python" ] &&
    [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint "$lock")" ]
then
    say "$venv is up to date ($lock)"
    exit 0
fi

# --- What this machine must offer -------------------------------------------------------------
[ "$(uname -s)" = Linux ] || die "this is $(uname -s); vLLM's CPU build runs on Linux only:
        use a Linux machine, a container or WSL 2"
[ "$(uname -m)" = x86_64 ] || die "this is $(uname -m); the lock is for x86_64:
        elsewhere, install by hand: pip install '.[cpu,tasks]'"
glibc="$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d' ' -f2 || true)"
[ -n "$glibc" ] && [ "$(printf '2.28\n%s\n' "$glibc" | sort -V | head -n1)" = 2.28 ] ||
    die "glibc is ${glibc:-absent (musl?)}; torch and vLLM need glibc 2.28 or later"
[ "$lane" = gpu ] || grep -qw avx2 /proc/cpuinfo ||
    die "this CPU has no AVX2, which vLLM's CPU build needs"
[ "$lane" = gpu ] || [[ "$(PATH="$PATH:/sbin" ldconfig -p)" == *libnuma.so.1* ]] ||
    die "there is no libnuma, which vLLM's CPU build needs: on Debian and Ubuntu, install libnuma1"
command -v "${CC:-cc}" >/dev/null || die "there is no C compiler, and some packages come as source:
        on Debian and Ubuntu, install gcc and python3-dev"

find_python() {
    local name
    for name in ${PYTHON:-} python3.11 python3.12 python3 python; do
        if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null
        then
            "$name" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}
if [ ! -x "$venv/bin/python" ]; then
    python="$(find_python)" || die "no Python 3.11 or 3.12 found:
        install one, or name it: make PYTHON=/path/to/python3.11 ..."
    free_mib="$(df --output=avail -m . | tail -n1 | tr -d ' ')"
    needed_mib=5000
    [ "$lane" != gpu ] || needed_mib=12000
    [ "$free_mib" -ge "$needed_mib" ] ||
        die "$needed_mib MB of disk are needed here and $free_mib MB are free"
    say "making $venv with $("$python" --version) ($python)"
    "$python" -m venv "$venv" || die "$python has no working venv module:
        on Debian and Ubuntu, install the package python3-venv"
fi

# --- The installer ----------------------------------------------------------------------------
version="$(sed -n 's/^uv==\([^ ]*\).*/\1/p' requirements/dev.txt)"
if [ -x "$venv/bin/uv" ]; then
    uv="$venv/bin/uv"
elif uv="$(command -v uv)" && "$uv" pip install --help 2>/dev/null | grep -q -- --torch-backend; then
    say "using $uv"
else
    say "installing uv $version"
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check "uv==$version"
    uv="$venv/bin/uv"
fi

# uv does not read pip's configuration: hand it what this machine says about indexes and wheels.
pip_setting() {
    "$venv/bin/python" -m pip config list 2>/dev/null |
        sed -n "s/^.*\.$1='\(.*\)'\$/\1/p" | sed 's/\\n/ /g' | tr -s ' ' '\n' | sort -u
}
links="$(pip_setting find-links | paste -sd , -)"
[ -z "$links" ] || export UV_FIND_LINKS="${UV_FIND_LINKS:-$links}"
index="$(pip_setting index-url | tail -n1)"
[ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
certificates="$(pip_setting cert | tail -n1)"
[ -z "$certificates" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$certificates}"
# Packages are unpacked once into uv's cache and linked from there; links do not cross file systems.
cache="$("$uv" cache dir)"
mkdir -p "$cache"
if [ "$(stat -c %d "$cache")" != "$(stat -c %d "$venv")" ]; then
    export UV_CACHE_DIR="$PWD/$venv/.uv-cache"
fi
export UV_LINK_MODE=hardlink UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-180}" UV_PYTHON="$PWD/$venv/bin/python"
# DeepSpeed compiles what it needs when it needs it.
export DS_BUILD_OPS=0
# What builds the packages that come as source is locked too.
install() {
    "$uv" pip install --no-config --no-deps --build-constraint requirements/dev.txt "$@"
}

# --- The packages -----------------------------------------------------------------------------
pin() { sed -n "s/^\($1==[^ ;]*\).*/\1/p" "$lock" | head -n1; }
remove() {
    if "$uv" pip show --quiet "$1" 2>/dev/null; then
        say "removing $1: $2"
        "$uv" pip uninstall --quiet "$1"
    fi
}
install_packages() {
    local torch backend=()
    torch="$(pin torch)"
    if [ "$lane" = gpu ]; then
        # A CPU build of the same version, kept somewhere near, would satisfy the lock.
        unset UV_FIND_LINKS
    else
        install --quiet --dry-run "$torch" 2>/dev/null || backend=(--torch-backend cpu)
    fi
    say "installing $(grep -c '==' "$lock") packages of $lock (gigabytes, and minutes the first time)"
    # DeepSpeed comes as source and looks at torch while it is built: torch first.
    install "${backend[@]}" "$torch" "$(pin setuptools)" "$(pin numpy)"
    install "${backend[@]}" --no-build-isolation-package deepspeed -r "$lock"
    [ "$lane" != gpu ] || return 0
    local unwanted
    for unwanted in torchvision torchaudio torchcodec; do
        remove "$unwanted" "beside a CPU torch it breaks transformers"
    done
}
[ "$part" = wheel ] || install_packages
case "$part" in
packages) exit 0 ;;
wheel)
    say "installing rlpost itself"
    install --quiet --reinstall-package rlpost .
    exit 0
    ;;
esac
say "installing rlpost itself, editable"
install --quiet --reinstall-package rlpost -e .
fingerprint "$lock" >"$stamp"
# The dev lock holds all of the cpu lock.
[ "$lane" != dev ] || fingerprint requirements/cpu.txt >"$venv/.rlpost-cpu"
say "$venv is ready"
