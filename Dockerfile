# megatron_moo on NVIDIA's PyTorch container (torch, NCCL, Transformer Engine), or on any base with Python 3.12.
#   docker build -t megatron-moo .
#   docker build -t megatron-moo --build-arg BASE_IMAGE=python:3.12-slim-bookworm .   # no GPU packages but torch's own
# docs/container.md says what was built and run, and what was not.
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:26.05-py3
# hadolint ignore=DL3006
FROM ${BASE_IMAGE}

SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# Runs, corpora and checkpoints are written as this user; give its number of your cluster's account at build time.
# (not UID: bash keeps that name for itself) The base may have a user of that number: Ubuntu's own is 1000.
ARG MOO_UID=10001
RUN useradd --uid "${MOO_UID}" --non-unique --user-group --create-home --shell /bin/bash moo \
    && install -d -o moo -g moo /workspace

# Packages change rarely and are large; the source changes often and is small. Two layers.
COPY pyproject.toml constraints.txt scripts/container_packages.py /opt/megatron_moo/
WORKDIR /opt/megatron_moo
# What the base brings (its own torch, built with its NCCL and Transformer Engine) stays as it is.
RUN python container_packages.py requirements > /tmp/requirements.txt \
    && python container_packages.py constraints > /tmp/constraints.txt \
    && python -m pip install --no-cache-dir -r /tmp/requirements.txt -c /tmp/constraints.txt \
    && rm /tmp/requirements.txt /tmp/constraints.txt

COPY setup.py README.md LICENSE /opt/megatron_moo/
COPY megatron_moo /opt/megatron_moo/megatron_moo
COPY examples /opt/megatron_moo/examples
COPY tools /opt/megatron_moo/tools
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation .

# Where torch and Triton put what they compile; the home of another user may not be writable.
ENV PYTHONUNBUFFERED=1 \
    TRITON_CACHE_DIR=/tmp/triton
# By number: a cluster's runtime cannot look up names of the image.
USER ${MOO_UID}
WORKDIR /workspace
# `doctor` fails where no run is possible: a package that does not import, a torch without the backend that is needed.
HEALTHCHECK --interval=10m --timeout=3m --start-period=3m --retries=2 CMD ["megatron-moo", "doctor"]
ENTRYPOINT ["megatron-moo"]
CMD ["doctor"]
