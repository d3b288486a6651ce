# A worker: the supervisor and its torchrun group. The weights are mounted, not built in. Built from the root.
# torch brings its own CUDA libraries; the base makes the driver visible and is what Triton compiles against.
# docs/operations.md tells how to replace the base image by a newer one.
ARG BASE=docker.io/nvidia/cuda:13.0.1-base-ubuntu24.04@sha256:f8ef28f579ea42a44b415d2c5d46f788e6a9b395c6c83f2929416e1fc192c143
FROM ${BASE}

# Triton compiles a small launcher in C for each kernel. The health check uses curl.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends curl gcc libc6-dev python3 python3-dev python3-venv tini \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /venv
ENV PATH=/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /app

# The dependencies have a layer of their own, which is built anew only when these two files change.
COPY pyproject.toml constraints.txt ./
# By default the torch on PyPI, which has CUDA. A folder or a page named here may have the same version without CUDA.
ARG PIP_FIND_LINKS=""
RUN touch README.md LICENSE && pip install --constraint constraints.txt '.[worker,s3,otel]'

COPY README.md LICENSE ./
COPY jobs jobs
COPY model model
COPY worker worker
RUN pip install --no-deps --force-reinstall .

# The folder /data is for a storage that is mounted, and /var/cache/longcat for compiled kernels (COMPILE_CACHE_DIR). The
# worker's own folder is not in a volume: it should go with its container, whose hostname is the name of the worker. It is
# the user's home, where Triton keeps its kernels otherwise, so that nothing else has to be writable.
RUN groupadd --gid 10001 longcat \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/longcat --no-create-home longcat \
    && install --directory --owner 10001 --group 10001 /data /var/cache/longcat /var/lib/longcat
# By number: Kubernetes cannot check `runAsNonRoot` for a name.
USER 10001:10001
WORKDIR /var/lib/longcat

# The storage is the folder that the API's image uses by default.
ENV LONGCAT_DATA_DIR=/var/lib/longcat LONGCAT_STORAGE=/data/storage LONGCAT_CHECKPOINT=/checkpoint \
    LONGCAT_DEVICE=cuda LONGCAT_HEALTH_PORT=8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["curl", "--fail", "--silent", "--output", "/dev/null", "http://127.0.0.1:8001/livez"]
# tini is the first process: the kernel ignores a signal to that one until it handles it, which Python does only when it
# has started, and a container that is stopped meanwhile would go on and could take work.
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "worker"]

# Last, because a layer is built anew when an argument before it changes.
ARG BASE
ARG REVISION=""
LABEL org.opencontainers.image.title="longcat-video-worker" \
    org.opencontainers.image.description="GPU worker of the LongCat-Video service" \
    org.opencontainers.image.version="0.4.0" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="${BASE}" \
    org.opencontainers.image.licenses="Apache-2.0"
