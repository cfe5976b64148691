# Two targets: `cpu`, and `gpu`, which is the default. docker/README.md has the commands and the build arguments.
#
# The code is under Apache-2.0. Of weights, only the packaged ones may lie in an image: they are the project's own and
# under CC BY 4.0, as their card says (model/weights/README.md). Weights that forbid commercial use must not (those that
# facebookresearch published for MAE are under CC-BY-NC): mount them at /weights.

ARG BASE=docker.io/library/python:3.11.14-slim-bookworm


# Lists of what pip installs before the code is there. They have stages of their own, so that the layers with the
# dependencies (gigabytes) are made again when these lists change, and not whenever pyproject.toml does.
FROM ${BASE} AS requirements
WORKDIR /requirements
COPY pyproject.toml docker/requirements.py ./
RUN python3 requirements.py --build > build.txt

FROM requirements AS requirements-cpu
ARG EXTRA=""
RUN python3 requirements.py "${EXTRA}" > all.txt

FROM requirements AS requirements-gpu
ARG EXTRA="tensorrt"
RUN python3 requirements.py "${EXTRA}" > all.txt


# An environment without packages, and the tools that only building needs.
FROM ${BASE} AS builder
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini=0.19.* \
    && rm -rf /var/lib/apt/lists/*
# The code lies beside the environment, not in it, so that the two are layers of their own.
RUN python3 -m venv /opt/venv \
    && echo /opt/mae > "$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/mae.pth"
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# These say where packages come from; empty means pip's own choice. None of them reaches the last stage, neither its
# environment nor its history. An address with a password belongs in a secret:
# --secret id=pip.conf,src=$HOME/.config/pip/pip.conf
ARG PIP_INDEX_URL=""
ARG PIP_EXTRA_INDEX_URL=""
ARG PIP_FIND_LINKS=""
COPY --from=requirements /requirements/build.txt /requirements/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --requirement /requirements/build.txt


# Everything but torch comes as the lock file has it, with the hashes of its files. The second step then adds torch, whose
# wheel depends on the index, and the packages of extras.
FROM builder AS dependencies-cpu
COPY --from=requirements-cpu /requirements/all.txt /requirements/
COPY constraints.txt docker/lock.txt /requirements/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --require-hashes --no-deps --requirement /requirements/lock.txt \
    && pip install --requirement /requirements/all.txt --constraint /requirements/constraints.txt \
    && pip uninstall --yes pip

FROM builder AS dependencies-gpu
COPY --from=requirements-gpu /requirements/all.txt /requirements/
COPY docker/constraints-gpu.txt /requirements/constraints.txt
COPY docker/lock.txt /requirements/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --require-hashes --no-deps --requirement /requirements/lock.txt \
    && pip install --requirement /requirements/all.txt --constraint /requirements/constraints.txt \
    && pip uninstall --yes pip


# The code, with its packaged weights and the command `mae`.
FROM builder AS app
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY model model
COPY service service
RUN pip install --no-cache-dir --no-index --no-build-isolation --no-deps --target /opt/mae .
COPY docker/healthcheck.py /opt/mae/bin/
COPY --chmod=755 docker/serve.sh /opt/mae/bin/serve


# The packaged model's engine, compared with eager float32 as at any start, so that the cpu image's first start is warm.
# OpenVINO's graphs fit any CPU of the architecture. The stage needs model/ alone, so other changes do not repeat it.
# The metadata tells the engine the project's version.
FROM dependencies-cpu AS engine
ARG VERSION=0.2.0
COPY model /opt/mae/model
WORKDIR /opt/mae/mae_serve.dist-info
RUN printf 'Metadata-Version: 2.1\nName: mae-serve\nVersion: %s\n' "${VERSION}" > METADATA \
    && python -c "from pathlib import Path; from model.engines.build import build; \
    from model.engines.settings import EngineSettings; \
    build(EngineSettings(engine_cache=Path('/cache/engines'), backend='openvino'), print)"


# This is what both images share: no compiler, no pip beyond the base image's own, no tests.
FROM ${BASE} AS runtime
COPY --from=builder /usr/bin/tini-static /usr/local/bin/tini
# The user is a number, because Kubernetes tells from the number alone that it is not root. Home is the volume:
# libraries keep their caches there, and the root file system may be read-only.
RUN groupadd --gid 10001 mae \
    && useradd --uid 10001 --gid 10001 --home-dir /cache --no-create-home --shell /usr/sbin/nologin mae \
    && install --directory --owner 10001 --group 10001 /cache /weights
ENV PATH=/opt/mae/bin:/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MAE_HOST=0.0.0.0 \
    MAE_ENGINE_CACHE=/cache/engines
EXPOSE 8000
# The check asks /readyz, not /livez, because those who wait for "healthy" want to send requests. The start period is
# long because a GPU's first start builds its engine for minutes. It delays nothing: the first good answer ends it, and a
# start that fails ends the process. The drain after SIGTERM, when /readyz says 503, is over before three probes have
# failed.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python", "-I", "/opt/mae/bin/healthcheck.py"]
# tini reaps the processes that a conversion may leave, and hands SIGTERM on to the server, which drains and exits
# with 0.
ENTRYPOINT ["tini", "--"]
CMD ["mae", "serve"]
LABEL org.opencontainers.image.title="mae-serve" \
      org.opencontainers.image.description="Serves masked autoencoders: images in, embeddings and reconstructions out" \
      org.opencontainers.image.licenses="Apache-2.0 AND CC-BY-4.0"


# Layers stand in the order of how seldom they change. The arguments that name the build come last, so that they do not
# make the layers anew.
FROM runtime AS cpu
COPY --from=dependencies-cpu /opt/venv /opt/venv
COPY --from=engine --chown=10001:10001 /cache /cache
COPY --from=app /opt/mae /opt/mae
VOLUME ["/cache"]
USER 10001:10001
ARG VERSION=0.2.0
ARG REVISION=""
ARG SOURCE=""
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"


FROM runtime AS gpu
COPY --from=dependencies-gpu /opt/venv /opt/venv
COPY --from=app /opt/mae /opt/mae
# NVIDIA's container runtime puts these in: the devices, CUDA's driver, and NVML for the metrics of the GPU.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME ["/cache"]
USER 10001:10001
ARG VERSION=0.2.0
ARG REVISION=""
ARG SOURCE=""
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"
