# The API. It reads specs, serves files and converts SAEs with JAX on the CPU; torch, TransformerLens and matplotlib are not in it.
# Build from the repository's root: docker build -f docker/api.Dockerfile -t sae-service-api:0.1.0 .
# A base by its digest: --build-arg PYTHON=python@sha256:...
ARG PYTHON=python:3.12.12-slim-trixie
FROM ${PYTHON} AS built
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
# Before the code, so that an edit of it installs nothing anew.
COPY docker/api.lock .
RUN pip install --no-cache-dir --no-deps --require-hashes -r api.lock
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
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 JAX_PLATFORMS=cpu SAE_SERVICE_DATA_DIR=/data XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface
# All that it writes is in these and in /tmp.
VOLUME ["/data", "/cache"]
EXPOSE 8000
HEALTHCHECK --interval=10s --start-period=30s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=5)"]
CMD ["python", "-m", "api", "--host", "0.0.0.0", "--port", "8000"]
