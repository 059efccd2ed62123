# syntax=docker/dockerfile:1
# smolten in a small image: `docker build -t smolten .` computes on CPUs; `--build-arg CUDA=1` adds the GPU kernels, for
# which the host needs NVIDIA's driver and container toolkit, and the image nothing: no CUDA library is used but libcuda,
# which the toolkit brings in.
#
#     docker run --rm -it -v "$PWD":/work --user "$(id -u):$(id -g)" smolten train --model … --data rows.jsonl
#     docker run --rm -it --gpus all -v "$PWD":/work --user "$(id -u):$(id -g)" smolten-cuda train …
#
# Models and tokens are cached in /cache: give it a volume to keep them.

FROM rust:1.95-slim-bookworm AS build
ARG CUDA=
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ ${CUDA:+python3-pip} \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
# The compiler of the kernels, by version and hash.
COPY scripts/get-nvcc scripts/nvcc-wheels.txt scripts/
RUN if [ -n "$CUDA" ]; then scripts/get-nvcc target/nvcc; fi
COPY . .
# The commit, as no repository is copied: --build-arg COMMIT="$(git rev-parse --short=12 HEAD)"
ARG COMMIT=
RUN SMOLTEN_COMMIT="$COMMIT" cargo install --locked --path . --root /install \
    && strip /install/bin/smolten \
    && /install/bin/smolten --version

FROM debian:bookworm-slim
COPY --from=build /install/bin/smolten /usr/local/bin/smolten
# World-writable, as --user may name anybody.
RUN useradd --create-home --uid 10001 smolten && install --directory --mode 1777 /cache /work
ENV HF_HOME=/cache/huggingface SMOLTEN_CACHE=/cache/smolten \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
WORKDIR /work
ENTRYPOINT ["smolten"]
CMD ["--help"]
