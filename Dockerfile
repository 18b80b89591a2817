# qpipe with CUDA:  docker build -t qpipe .
# The second stage has what the Debian package of the first depends on, the Python environment, and MPI to start ranks; no compiler, no sources.
# docs/install.md tells how to run it. CUDA 13 needs a driver of version 580 or newer.
ARG CUDA=13.0.1
ARG UBUNTU=24.04

FROM nvidia/cuda:${CUDA}-devel-ubuntu${UBUNTU} AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# dpkg-dev and file: cpack asks them for the libraries that the package depends on.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends dpkg-dev file \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/qpipe
# First what changes seldom.
COPY scripts scripts
RUN scripts/install-dependencies
COPY . .
# Compute capabilities, as "80-real;90a-real;90-virtual"; empty: those of CMakeLists.txt.
ARG CUDAARCHS=
RUN if [ -z "$CUDAARCHS" ]; then unset CUDAARCHS; fi \
 && cmake --preset release -DQPIPE_CUDA=ON -DBUILD_TESTING=OFF \
 && cmake --build --preset release \
 && cpack --config build/release/CPackConfig.cmake -G DEB -B /opt/package

FROM nvidia/cuda:${CUDA}-runtime-ubuntu${UBUNTU}
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
COPY --from=build /opt/package/*.deb /tmp/package/
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends openmpi-bin python3 /tmp/package/*.deb \
 && rm -rf /var/lib/apt/lists/* /tmp/package
# An environment of Python stays where it was made.
COPY --from=build /opt/qpipe/.venv /opt/qpipe/.venv
# Containers may not read another process's memory, by which ranks of one machine would send.
ENV QPIPE_PYTHON=/opt/qpipe/.venv/bin/python \
    OMPI_MCA_btl_vader_single_copy_mechanism=none
RUN useradd --create-home --uid 10001 --user-group qpipe && install -d -o qpipe -g qpipe /data \
 && qpipe --version && "$QPIPE_PYTHON" -c 'import tokenizers, jinja2, pyarrow, huggingface_hub'
USER 10001:10001
WORKDIR /data
# The base image's own would write a banner before the program's output.
ENTRYPOINT []
CMD ["qpipe", "--help"]
