# rlpost on CPUs; docker/README.md says how it is built and run.
ARG BASE=docker.io/library/debian:bookworm-20260918-slim

# Replaced by `--build-context wheels=FOLDER`, for a machine whose wheels lie in a folder.
FROM scratch AS wheels

# --- What runs: Python, what KubeRay's probes call, a user ---------------------------------------
FROM ${BASE} AS runtime
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libnuma1 python3 tini wget \
    && rm -rf /var/lib/apt/lists/* \
    # KubeRay starts Ray in a login shell where its operator is told to, and those forget ENV.
    && echo "PATH=/opt/rlpost/.venv/bin:\$PATH" >/etc/profile.d/rlpost.sh \
    && useradd --uid 1000 --create-home rlpost \
    && install -d -o rlpost -g rlpost /data

# --- What installs: compilers and the lock -------------------------------------------------------
FROM runtime AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/rlpost
# uv links from a cache on the same file system; nobody can write bytecode later.
ENV UV_CACHE_DIR=/opt/uv-cache UV_COMPILE_BYTECODE=1
COPY pyproject.toml ./
COPY requirements requirements/
COPY scripts/setup.sh scripts/
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle \
    --mount=type=bind,from=wheels,target=/wheels \
    scripts/setup.sh cpu packages
COPY LICENSE README.md ./
COPY actors actors/
COPY recipes recipes/
COPY rlpost rlpost/
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle \
    --mount=type=bind,from=wheels,target=/wheels \
    scripts/setup.sh cpu wheel && .venv/bin/python -m pip uninstall -qy uv

# --- The image -----------------------------------------------------------------------------------
FROM runtime
COPY docker/health.sh /usr/local/bin/rlpost-health
COPY --from=build /opt/rlpost/.venv /opt/rlpost/.venv
ENV PATH=/opt/rlpost/.venv/bin:$PATH HF_HOME=/data/huggingface RAY_USAGE_STATS_ENABLED=0
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="rlpost" \
    org.opencontainers.image.description="Reinforcement-learning post-training on CPUs" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
USER 1000:1000
WORKDIR /data
HEALTHCHECK --interval=30s --timeout=15s --start-period=2m --retries=3 CMD ["rlpost-health"]
ENTRYPOINT ["tini", "--"]
CMD ["rlpost", "--help"]
