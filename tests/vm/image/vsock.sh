# shellcheck shell=bash
# A vsock device in user space: the machine's own vsock is never touched, and no kernel module is needed.

vsock_version=0.3.0

vsock_device() {
    piece vhost-device-vsock "$vsock_version $(uname -m)" make_vsock_device
}

make_vsock_device() {
    local root
    root=$(mktemp -d)
    # its own target directory: the project's is locked while cargo builds there
    CARGO_TARGET_DIR=$root/target cargo install --quiet --locked --root "$root" --version "$vsock_version" vhost-device-vsock || return 1
    mv "$root/bin/vhost-device-vsock" "$1"
    rm -rf "$root"
}
