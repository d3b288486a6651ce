# The API: small, without torch. Built from the repository's root.
# docs/operations.md tells how to replace the base image by a newer one.
ARG BASE=docker.io/library/python:3.12.15-slim-bookworm@sha256:7753c33391fc9f01d1984375bf375eb6686d52ba10db6043a86634a5ccf90dcf
FROM ${BASE}

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /app
RUN apt-get update && apt-get install --yes --no-install-recommends tini && rm -rf /var/lib/apt/lists/*

# The dependencies have a layer of their own, which is built anew only when these two files change.
COPY pyproject.toml constraints.txt ./
RUN touch README.md LICENSE && pip install --constraint constraints.txt '.[service,s3,otel]'

COPY README.md LICENSE ./
COPY client client
COPY jobs jobs
COPY model model
COPY service service
RUN pip install --no-deps --force-reinstall .

RUN groupadd --gid 10001 longcat && useradd --uid 10001 --gid 10001 --create-home longcat \
    && install --directory --owner 10001 --group 10001 /data
# By number: Kubernetes cannot check `runAsNonRoot` for a name.
USER 10001:10001
WORKDIR /data
VOLUME /data

ENV LONGCAT_HOST=0.0.0.0 LONGCAT_PORT=8000 LONGCAT_DATA_DIR=/data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
# tini is the first process: the kernel ignores a signal to that one until it handles it, which Python does only when it
# has started, and a container that is stopped meanwhile would go on and could take work.
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "service"]

# Last, because a layer is built anew when an argument before it changes.
ARG BASE
ARG REVISION=""
LABEL org.opencontainers.image.title="longcat-video-api" \
    org.opencontainers.image.description="HTTP API of the LongCat-Video service" \
    org.opencontainers.image.version="0.4.0" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="${BASE}" \
    org.opencontainers.image.licenses="Apache-2.0"
