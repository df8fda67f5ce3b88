#!/usr/bin/env bash
# Build the Dockerfile of this repository without a container engine, on a Debian base that is made here.
#   build.sh FOLDER     root; FOLDER takes about 20 GB: the base, and buildah's storage with localhost/megatron-moo
#
# Debian 12 has no Python 3.12, so the one that runs this repository's tests is copied into the base.
set -euo pipefail
folder=$(realpath "$1")
root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
python=$("$root/.venv/bin/python" -c 'import sys; print(sys.base_prefix)')
base=$folder/base

build() { buildah --storage-driver vfs --root "$folder/storage" --runroot "$folder/runroot" "$@"; }

if ! build inspect --type image localhost/debian-python >/dev/null 2>&1; then
    # useradd, and what CPython is linked with; nothing that compiles.
    libraries=passwd,ca-certificates,libssl3,libffi8,libbz2-1.0,liblzma5,libsqlite3-0,libreadline8,zlib1g,libncursesw6,libuuid1
    sources=$(cat /etc/apt/sources.list.d/*.sources 2>/dev/null || cat /etc/apt/sources.list)
    rm -rf "$base"
    mmdebstrap --variant=minbase --include="$libraries" bookworm "$base" - <<<"$sources"
    # As where MOO_UID is 1000 and the base Ubuntu's: its number is taken.
    chroot "$base" useradd --uid 10001 taken
    mkdir -p "$base/opt"
    cp -a "$python" "$base/opt/python"
    rm -rf "$base"/opt/python/lib/python3.12/{test,site-packages} "$base/var/cache/apt" "$base/var/lib/apt/lists"
    mkdir -p "$base/opt/python/lib/python3.12/site-packages"
    cp -a "$python"/lib/python3.12/site-packages/pip* "$base/opt/python/lib/python3.12/site-packages/"
    ln -sf /opt/python/bin/python3.12 "$base/usr/local/bin/python"
    ln -sf /opt/python/bin/python3.12 "$base/usr/local/bin/python3"
    # It may be a shared library, which looks for itself where it was built.
    echo /opt/python/lib >"$base/etc/ld.so.conf.d/python.conf"
    ldconfig -r "$base"
    # Certificates of this machine, which a proxy in between may have added to.
    cp -L /etc/ssl/certs/ca-certificates.crt "$base/etc/ssl/certs/ca-certificates.crt"
    printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >"$base/etc/pip.conf"
    container=$(build from scratch)
    build add --quiet "$container" "$base" /
    # Programs that pip installs land beside the copied Python.
    build config --env PATH=/opt/python/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    build commit --quiet --rm "$container" localhost/debian-python
    rm -rf "$base"
fi
build bud --isolation chroot --format docker --build-arg BASE_IMAGE=localhost/debian-python \
    --tag localhost/megatron-moo --file "$root/Dockerfile" "$root"
