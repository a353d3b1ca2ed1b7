# The API. It reads specs and serves files. It never imports torch, which is here only because the package depends on it:
# a CPU build (--build-arg TORCH=<requirement or wheel>) saves gigabytes.
# Build from the repository's root: docker build -f docker/api.Dockerfile -t sae-service-api .
FROM python:3.12-slim

WORKDIR /app
COPY pyproject.toml README.md ./
COPY sae_service sae_service
COPY api api
COPY workers workers
ARG TORCH=torch
RUN pip install --no-cache-dir ${TORCH} && pip install --no-cache-dir .

RUN useradd --create-home sae && mkdir /data && chown sae /data
USER sae
ENV SAE_SERVICE_DATA_DIR=/data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --start-period=30s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz')"]
CMD ["python", "-m", "api", "--host", "0.0.0.0", "--port", "8000"]
