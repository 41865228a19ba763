# zhllama in a container, of two kinds: `cpu`, and `cuda` for NVIDIA GPUs (the default).
#   docker build --target cpu --tag zhllama:cpu .
#   docker build --target cuda --tag zhllama:cuda .
# Recipes, corpora and models are read and written in the folder that it is started in:
#   docker run --rm --volume "$PWD":/work zhllama:cpu recipes --output recipes
#   docker run --rm --volume "$PWD":/work zhllama:cpu train-tokenizer --config tokenizer/train.yaml \
#       --corpus corpus --base base --output chinese
#   docker run --rm --gpus all --ipc host --volume "$PWD":/work --entrypoint deepspeed zhllama:cuda \
#       --module zhllama pretrain --config pretrain/llama2-7b.yaml --model model --tokens tokens --output run

FROM scratch AS source
COPY pyproject.toml README.md LICENSE constraints.txt /
COPY tokenizer /tokenizer
COPY pretrain /pretrain
COPY sft /sft
COPY ds_configs /ds_configs
COPY zhllama /zhllama

FROM python:3.11-slim AS cpu
ENV DS_ACCELERATOR=cpu PIP_NO_CACHE_DIR=1 TORCH_EXTENSIONS_DIR=/opt/torch-extensions
# Some packages have no wheel, and DeepSpeed compiles its CPU op.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/zhllama
COPY constraints.txt .
# torch first and pinned, from its index for CPUs: any other build downloads gigabytes.
RUN pip install --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' constraints.txt)"
COPY --from=source / .
RUN pip install --constraint constraints.txt ".[clean,train,report]"
# A minute that the first start would take.
RUN python -c "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as B; B().load()"
RUN zhllama --version
WORKDIR /work
ENTRYPOINT ["zhllama"]
CMD ["--help"]

# The CUDA that torch's own wheel is built for, with the compiler that DeepSpeed's offloading asks for.
FROM nvidia/cuda:13.0.3-devel-ubuntu24.04 AS cuda
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 TORCH_EXTENSIONS_DIR=/opt/torch-extensions
RUN apt-get update && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
WORKDIR /opt/zhllama
COPY constraints.txt .
RUN pip install "$(grep '^torch==' constraints.txt)"
COPY --from=source / .
RUN pip install --constraint constraints.txt ".[clean,train,report]"
RUN zhllama --version
WORKDIR /work
ENTRYPOINT ["zhllama"]
CMD ["--help"]
