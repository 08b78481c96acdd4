# The service, its models and nothing else. For a GPU host:
#   docker build --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130 -t gatehouse:gpu .
#   docker run --gpus all -p 8000:8000 -e GATEHOUSE_API_KEYS=... gatehouse:gpu
# Without API keys it serves only where GATEHOUSE_ALLOW_ANONYMOUS=true: see docs/security.md.
FROM python:3.11.15-slim-trixie

# Where torch comes from, and only torch: the CPU build unless asked otherwise.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu

ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/tmp/kernels \
    PYTHONUNBUFFERED=1

RUN useradd --system --uid 10001 --home-dir /srv/gatehouse gatehouse \
    && python -m venv /opt/venv
WORKDIR /srv/gatehouse

# From what changes least to what changes most: new code never installs torch again.
COPY constraints.txt ./
RUN pip install --no-deps --index-url "$TORCH_INDEX_URL" --constraint constraints.txt torch

# The editable install of a folder without code yet: the dependencies and the command.
COPY pyproject.toml ./
RUN pip install --constraint constraints.txt --editable .

COPY models models
COPY training training
COPY gatehouse_client gatehouse_client
COPY app app
COPY checkpoints checkpoints

USER 10001
ENV GATEHOUSE_HOST=0.0.0.0
EXPOSE 8000

# No proxy: the check stays inside the container.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ.get('GATEHOUSE_PORT', '8000') + '/health/ready', timeout=4)"]

CMD ["gatehouse", "serve"]
