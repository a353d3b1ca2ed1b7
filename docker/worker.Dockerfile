# A worker with CUDA 13 builds of torch and JAX. Start it with --gpus, one container for each GPU.
# Build from the repository's root: docker build -f docker/worker.Dockerfile -t sae-service-worker .
FROM python:3.12-slim

WORKDIR /app
COPY pyproject.toml README.md ./
COPY sae_service sae_service
COPY api api
COPY workers workers
RUN pip install --no-cache-dir ".[cuda]"

RUN useradd --create-home sae && mkdir /data && chown sae /data
USER sae
ENV SAE_SERVICE_DATA_DIR=/data
VOLUME /data
# SIGTERM makes it save its job and give it back; docker/compose.yaml allows two minutes and a half for that.
CMD ["python", "-m", "workers"]
