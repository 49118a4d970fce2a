# clip-ood serve in a container, for the detector folder that is mounted at /detector (docs/server.md).
FROM python:3.11-slim

# An index of wheels for CPUs spares the gigabytes of those for GPUs: --build-arg TORCH_INDEX=…
ARG TORCH_INDEX=""

WORKDIR /src
COPY requirements.lock ./
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c requirements.lock torch torchvision
COPY pyproject.toml README.md LICENSE ./
COPY callbacks ./callbacks
COPY clip_ood ./clip_ood
COPY configs ./configs
COPY datamodules ./datamodules
COPY demo ./demo
COPY experiments ./experiments
COPY lightning_modules ./lightning_modules
RUN pip install --no-cache-dir -c requirements.lock ".[serve,heif]" \
  && useradd --create-home --uid 10001 server
USER 10001
WORKDIR /home/server

EXPOSE 8710
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
  CMD ["python", "-c", "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:8710/ready', timeout=4)"]
ENTRYPOINT ["clip-ood", "serve", "--host", "0.0.0.0", "--port", "8710"]
CMD ["--run", "/detector"]
