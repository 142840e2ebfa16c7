# syntax=docker/dockerfile:1
# CPU:  docker build -t cots-retrieval .
# GPU:  docker build -t cots-retrieval:gpu --build-arg DEVICE=cuda .
# A much smaller CPU image: --build-arg TORCH_INDEX=<index of PyTorch's CPU builds>
# For buckets, Milvus or Ray: --build-arg EXTRAS=s3,milvus,ray

ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS build
# Where PyTorch comes from; empty: from where everything else does (runs on CPU and GPU).
ARG TORCH_INDEX=
# Extras of the project, separated by commas.
ARG EXTRAS=
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/cots
COPY pyproject.toml constraints.txt README.md LICENSE ./
# PyTorch first and alone: its layer is large and changes seldom.
RUN pins="$(grep -E '^(torch|torchvision)==' constraints.txt)" \
    && /opt/cots/bin/pip install ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} ${pins}
COPY cots_model cots_model
COPY index_builder index_builder
COPY service service
COPY training training
COPY cots_cli cots_cli
RUN /opt/cots/bin/pip install --constraint constraints.txt ".${EXTRAS:+[${EXTRAS}]}"

FROM python:${PYTHON_VERSION}-slim
# cpu | cuda | auto: where the model runs unless COTS_DEVICE says otherwise.
ARG DEVICE=cpu
LABEL org.opencontainers.image.title="COTS Retrieval" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 cots \
    && useradd --uid 10001 --gid cots --home-dir /home/cots --create-home --shell /usr/sbin/nologin cots \
    && install -d -o cots -g cots /galleries
COPY --from=build /opt/cots /opt/cots
ENV PATH=/opt/cots/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    COTS_GALLERIES=/galleries \
    COTS_DEVICE=${DEVICE} \
    COTS_HOST=0.0.0.0 \
    COTS_PORT=8000
USER 10001:10001
WORKDIR /home/cots
VOLUME ["/galleries"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['COTS_PORT'] + '/readyz', timeout=4)"]
# Without COTS_API_KEY_SHA256 or COTS_ALLOW_PUBLIC the service refuses to listen on 0.0.0.0.
ENTRYPOINT ["cots"]
CMD ["serve"]
