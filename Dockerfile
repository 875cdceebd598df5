# moebench with everything that a study needs, on a CPU or on NVIDIA GPUs.
#
#   docker build -t moebench .                                                     # CPU
#   docker build -t moebench:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#   docker run --rm -v "$PWD/runs:/work/runs" moebench sweep study=demo
#   docker run --rm --gpus all -v "$PWD/runs:/work/runs" moebench:cuda train scope=global
#
# The image for CUDA needs the driver and the NVIDIA container toolkit on the host; torch's wheels
# bring the CUDA libraries.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1

WORKDIR /src
COPY constraints.txt ./
# torch first and alone, as in the Makefile: all else comes from PyPI
RUN version="$(sed -n 's/^torch==//p' constraints.txt)" \
    && pip install --index-url "${TORCH_INDEX}" "torch==${version}"
COPY pyproject.toml README.md LICENSE ./
COPY docs docs
COPY moebench moebench
COPY conf conf
RUN pip install --constraint constraints.txt . && useradd --create-home --uid 1000 user \
    && mkdir -p /work/runs /cache && chown -R user /work /cache

ENV MOEBENCH_CACHE=/cache
USER 1000
WORKDIR /work
ENTRYPOINT ["moebench"]
CMD ["--help"]
