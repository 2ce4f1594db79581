# syntax=docker/dockerfile:1
# One image for every process: `serve` (the default), `worker`, `scheduler`, `migrate` and all of `hub`.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
RUN python -m venv /build && python -m venv --without-pip /opt/hub
# Only wheels, each of them as the lock files know it: nothing is compiled, and nothing else gets in.
COPY requirements.lock requirements-build.lock ./
RUN pip --python /opt/hub/bin/python install --require-hashes --only-binary=:all: -r requirements.lock \
    && pip --python /build/bin/python install --require-hashes --only-binary=:all: -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY connectors connectors
COPY mapping-templates mapping-templates
COPY migrations migrations
COPY schemas schemas
COPY engine engine
COPY server server
RUN /build/bin/python -m hatchling build -t wheel -d /wheel \
    && pip --python /opt/hub/bin/python install --no-deps --no-index /wheel/*.whl

FROM python:${PYTHON_VERSION}-slim-bookworm
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Integration Hub" \
      org.opencontainers.image.description="A self-hosted integration hub: one YAML manifest per provider, one mapping template per venue type, a generic engine between them" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --system --gid 10001 hub \
    && useradd --system --uid 10001 --gid hub --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin hub
COPY --from=build /opt/hub /opt/hub
# Nothing is written but below /tmp, so that the root file system may be read-only.
ENV PATH=/opt/hub/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HUB_ENV=production \
    HUB_STATE=/tmp/hub \
    HOST=0.0.0.0 \
    PORT=3007
WORKDIR /opt/hub
USER 10001:10001
EXPOSE 3007
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["hub", "alive"]
ENTRYPOINT ["hub"]
CMD ["serve"]
