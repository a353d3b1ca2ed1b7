# A worker with CUDA 13 builds of torch and JAX. Start it with --gpus, one container for each GPU.
# Build from the repository's root: docker build -f docker/worker.Dockerfile -t sae-service-worker:0.1.0 .
# A base by its digest: --build-arg PYTHON=python@sha256:...
# The lock is of Linux on x86-64 with CUDA. PyPI's torch always brings CUDA; for a CPU build lock torch from PyTorch's own index.
ARG PYTHON=python:3.12.12-slim-trixie
FROM ${PYTHON} AS built
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
# Before the code, so that an edit of it installs nothing anew.
COPY docker/worker.lock .
RUN pip install --no-cache-dir --no-deps --require-hashes -r worker.lock
COPY pyproject.toml README.md ./
COPY sae_service sae_service
COPY api api
COPY workers workers
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

FROM ${PYTHON}
RUN useradd --uid 10001 --create-home sae && mkdir /data /cache && chown sae /data /cache
COPY --from=built /opt/venv /opt/venv
USER 10001
WORKDIR /data
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 SAE_SERVICE_DATA_DIR=/data XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface
# All that it writes is in these and in /tmp.
VOLUME ["/data", "/cache"]
# SIGTERM makes it save its job and give it back; docker/compose.yaml allows two minutes and a half for that.
CMD ["python", "-m", "workers"]
