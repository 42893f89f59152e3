# Two targets: `cpu` (the default of docker-compose.yml) and `gpu` (CUDA 13, host driver >= 580); `pull` brings models.
# Only the service and its dependencies go in: no training code, no torch, no compiler, no pip.
# Every package is named with its digests in deploy/image/; a base image can be: --build-arg BASE=python@sha256:…
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS dependencies
WORKDIR /build
COPY deploy/image ./
RUN python -m venv --without-pip /opt/venv

FROM dependencies AS cpu-dependencies
RUN python -m pip --python /opt/venv/bin/python install --no-cache-dir --only-binary=:all: --require-hashes -r cpu.txt

FROM ${BASE} AS runtime
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    FOLDSERVE_HOST=0.0.0.0 \
    FOLDSERVE_PORT=8000 \
    FOLDSERVE_MODELS_DIR=/models \
    FOLDSERVE_STATE_DIR=/state
WORKDIR /app
COPY foldserve ./foldserve
COPY service ./service
# The root file system is read-only at run time, so bytecode is compiled here; /state is where a volume is mounted.
RUN python -m compileall -q foldserve service && mkdir /state && chown 10001:10001 /state
# The commands of the documents, as they stand there: docker compose exec cpu foldserve models list
RUN printf '#!/bin/sh\nPYTHONPATH=/app exec python -m foldserve "$@"\n' > /usr/local/bin/foldserve && chmod 755 /usr/local/bin/foldserve
EXPOSE 8000
USER 10001:10001
# slim images have no curl; each check starts a Python, hence the long interval.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['FOLDSERVE_PORT'] + '/v2/health/ready', timeout=4)"]
CMD ["python", "-m", "foldserve", "serve"]

FROM runtime AS cpu
ENV FOLDSERVE_PROVIDER=cpu
COPY --from=cpu-dependencies /opt/venv /opt/venv

# What an init container runs to bring models from a bucket: foldserve pull, and nothing of the service.
FROM dependencies AS pull-dependencies
RUN python -m pip --python /opt/venv/bin/python install --no-cache-dir --only-binary=:all: --require-hashes -r pull.txt

FROM ${BASE} AS pull
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
COPY foldserve ./foldserve
COPY --from=pull-dependencies /opt/venv /opt/venv
USER 10001:10001
ENTRYPOINT ["python", "-m", "foldserve", "pull"]

# The classic builder runs every stage above its target, so what only the GPU image needs stands last.
FROM dependencies AS gpu-dependencies
RUN python -m pip --python /opt/venv/bin/python install --no-cache-dir --only-binary=:all: --require-hashes -r gpu.txt

FROM runtime AS gpu
ENV FOLDSERVE_PROVIDER=cuda \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=gpu-dependencies /opt/venv /opt/venv
