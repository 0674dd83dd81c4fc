# The image holds the binary, the libraries that it is linked with, and the authorities for TLS: no shell, no packages.
#   buildah bud -t tollgate .                                     compiles in a container
#   buildah bud -t tollgate --build-arg BINARY=prebuilt .         takes target/release/tollgate, made on Debian 12 or older
ARG BINARY=build
ARG RUST=docker.io/library/rust:1.95.0-slim-bookworm
ARG DEBIAN=docker.io/library/debian:bookworm-slim

FROM ${RUST} AS build
# Whatever Debian 12 has now: a pinned version is gone with the next fix.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin tollgate && cp target/release/tollgate /tollgate

FROM ${DEBIAN} AS prebuilt
COPY target/release/tollgate /tollgate

# hadolint ignore=DL3006
FROM ${BINARY} AS binary

FROM ${DEBIAN} AS root
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends binutils ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=binary /tollgate /tollgate
COPY packaging/image-root.sh /image-root.sh
RUN sh /image-root.sh /tollgate /image

# Not a static binary, though it would do without glibc's files: this one is what the tests have run.
FROM scratch
LABEL org.opencontainers.image.title="tollgate" \
      org.opencontainers.image.description="A real-time gateway: publish to Redis, every authorised socket hears it" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=root /image /
USER 65532:65532
EXPOSE 8000 9000
ENTRYPOINT ["/usr/local/bin/tollgate"]
CMD ["serve"]
