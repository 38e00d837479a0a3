# The compendium and its pinned packages. CPU: `docker build -t cesm_nb .`; with an NVIDIA card:
# `docker build --build-arg INDEX=https://download.pytorch.org/whl/cu126 -t cesm_nb:cuda .` and `docker run --gpus all`.
# Data and results stay outside: `docker run --rm -v "$PWD/data:/data:ro" -v "$PWD/runs:/cesm_nb/runs" cesm_nb cesm_check /data`
FROM python:3.11-slim
ARG INDEX=https://download.pytorch.org/whl/cpu
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends git make libgl1 libglib2.0-0 && rm -rf /var/lib/apt/lists/*
WORKDIR /cesm_nb
COPY . .
RUN pip install --no-cache-dir --extra-index-url "$INDEX" --constraint constraints.txt --editable '.[dev]' && python -m compileall -q cesm_nb
CMD ["cesm_reproduce"]
