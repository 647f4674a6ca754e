#!/usr/bin/env bash
# Make .venv what the lock says: `scripts/setup.sh cpu` to run, `scripts/setup.sh dev` to work on
# the code too. What is already there is kept; when nothing has changed this takes a second.
set -euo pipefail
cd "$(dirname "$0")/.."

lane="${1:-cpu}"
lock="requirements/$lane.txt"
venv=.venv
stamp="$venv/.rlpost-$lane"

say() { printf '[setup] %s\n' "$*"; }
die() {
    printf '[setup] cannot set up: %s\n' "$*" >&2
    exit 1
}

[ -f "$lock" ] || die "there is no $lock: the lanes are cpu and dev"
# The folder is part of it: an environment copied or moved elsewhere is none.
fingerprint() {
    printf '%s %s' "$(cat "$1" pyproject.toml scripts/setup.sh | sha256sum | cut -d' ' -f1)" "$PWD"
}
if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint "$lock")" ]; then
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
grep -qw avx2 /proc/cpuinfo || die "this CPU has no AVX2, which vLLM's CPU build needs"
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
    [ "$free_mib" -ge 5000 ] || die "5 GB of disk are needed here and $free_mib MB are free"
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
install() { "$uv" pip install --no-config --no-deps "$@"; }

# --- The packages -----------------------------------------------------------------------------
pin() { sed -n "s/^\($1==[^ ;]*\).*/\1/p" "$lock" | head -n1; }
torch="$(pin torch)"
backend=()
install --quiet --dry-run "$torch" 2>/dev/null || backend=(--torch-backend cpu)

say "installing $(grep -c '==' "$lock") packages of $lock (about 2.5 GB on disk, minutes the first time)"
# DeepSpeed comes as source and looks at torch while it is built: torch first.
install "${backend[@]}" "$torch" "$(pin setuptools)" "$(pin numpy)"
install "${backend[@]}" --no-build-isolation-package deepspeed -r "$lock"
say "installing rlpost itself, editable"
install --quiet --reinstall-package rlpost -e .

for unwanted in torchvision torchaudio torchcodec; do
    if "$uv" pip show --quiet "$unwanted" 2>/dev/null; then
        say "removing $unwanted: beside a CPU torch it breaks transformers"
        "$uv" pip uninstall --quiet "$unwanted"
    fi
done
fingerprint "$lock" >"$stamp"
# The dev lock holds all of the cpu lock.
[ "$lane" = cpu ] || fingerprint requirements/cpu.txt >"$venv/.rlpost-cpu"
say "$venv is ready"
