# docker build -t sema-bench .
# docker run --rm --gpus all -v "$PWD/results:/bench/results" sema-bench scale --res 224..1024
#
# Leave out --gpus all on a machine without a GPU. Other images: --build-arg BASE=pytorch/pytorch:TAG (torch 2.6 or later).
ARG BASE=pytorch/pytorch:2.10.0-cuda12.8-cudnn9-runtime
FROM ${BASE}

# g++ compiles the kernels of sema/kernels, and what torch.compile and Triton generate; git serves sema-bench gate.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git \
    && rm -rf /var/lib/apt/lists/*

# Some of these images have Debian's Python, which refuses to install packages without the first setting.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 \
    PIP_NO_CACHE_DIR=1

COPY pyproject.toml README.md LICENSE /src/
COPY suites /src/suites
COPY sema /src/sema
COPY sema_bench /src/sema_bench
# The image's torch must stay: pip fails if anything would replace it.
RUN python -c "import torch; print('torch==' + torch.__version__)" > /tmp/torch.txt \
    && pip install --constraint /tmp/torch.txt /src \
    && rm -r /src /tmp/torch.txt \
    && python -c "import torch; assert torch.version.cuda, torch.__version__" \
    && sema-bench --version

WORKDIR /bench
ENTRYPOINT ["sema-bench"]
CMD ["--help"]
