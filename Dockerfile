# CPU:  docker build -t xares-bench .
# GPU:  docker build -t xares-bench --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 .
# docs/docker.md has the commands to run it, and how to get torch's smaller builds for CPUs.
ARG BASE=python:3.11-slim
FROM ${BASE}

# The index that torch comes from. Empty: pip's own, whose builds for Linux bring CUDA.
ARG TORCH_INDEX=

# Images of CUDA have no Python.
RUN python3 -c 'import ensurepip' 2>/dev/null || { \
        apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*; \
    }
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/venv

WORKDIR /opt/xares-bench
COPY constraints.txt ./
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY xares_bench xares_bench
COPY bench bench
COPY examples examples
COPY fixtures fixtures
RUN pip install -c constraints.txt -e '.[m4a]'

# Your encoder, and the results.
WORKDIR /work
ENTRYPOINT ["pytest", "/opt/xares-bench/bench", "-p", "no:cacheprovider"]
CMD ["--collect-only", "-q"]
