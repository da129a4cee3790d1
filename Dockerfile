# NOT BUILT BY US: there was no Docker engine at hand. Tried outside a container, on Python 3.12: the
# wheel built from the copied files alone, installed and run; the packages of `train` resolved, not
# installed. If a step fails for you, please tell us (CONTRIBUTING.md). Needs BuildKit.
#
#   docker build --target generate -t targen .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/runs:/data" -e OPENAI_API_KEY \
#     targen generate copa -n 200 --model NAME --out copa
#
# A server on the host: add --network host (Linux) and give --base-url.

FROM python:3.12-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY targen_async targen_async
COPY prompts prompts
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# ---- makes data sets: the core only

FROM python:3.12-slim AS generate
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python -m venv /opt/venv && pip install --no-cache-dir /wheels/*.whl
RUN useradd --create-home targen && install -d -o targen -g targen /data
USER targen
WORKDIR /data
VOLUME /data
ENTRYPOINT ["targen"]

# ---- trains on them
# torch comes first, because which build of it is wanted is the one choice to make: on x86-64 Linux
# the default is the CUDA build, which brings its own CUDA libraries and runs on a CPU too. For the
# small CPU build give pip the address of PyTorch's CPU wheels (their site names it):
#   docker build --target train --build-arg TORCH_PIP_ARGS="--index-url ADDRESS" -t targen-train .
# DeepSpeed compiles some operators when they are first used, hence g++. Its CUDA operators want
# nvcc besides, which is not in here: base the stage on a CUDA development image if you use them.

FROM python:3.12-slim AS train
ARG TORCH_PIP_ARGS=""
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv && pip install --no-cache-dir $TORCH_PIP_ARGS "torch>=2.6,<2.16"
WORKDIR /opt/targen
COPY pyproject.toml README.md LICENSE ./
COPY targen_async targen_async
COPY prompts prompts
COPY runners runners
RUN pip install --no-cache-dir '.[train]'
RUN useradd --create-home targen && install -d -o targen -g targen /data
USER targen
VOLUME /data
#   docker run --gpus all … targen-train runners/train.py --config … --out …
ENTRYPOINT ["deepspeed"]
CMD ["--help"]
