# shellcheck shell=bash
# Debian's cloud kernel, unpacked and never installed, and an initial ramdisk with busybox and the modules the tests need.

# Built into some kernels, modules of others; what is neither is left out and the tests that need it are skipped.
modules=(virtio_pci virtio_blk virtio_console vmw_vsock_virtio_transport fuse loop dm-mod dm-delay)

kernel() {
    local package
    apt_lists
    package=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }')
    [ -n "$package" ] || { say "apt knows no linux-image-cloud-amd64"; return 1; }
    kernel_package=$package
    piece kernel "$(apt-cache show --no-all-versions "$package" | grep -E '^(Package|Version):'; sum "$here/kernel.sh")" unpack_kernel
}

unpack_kernel() {
    mkdir -p "$1"
    (cd "$1" && apt-get download -qq -o APT::Sandbox::User=root "$kernel_package" && dpkg -x "$kernel_package"_*.deb . && rm -f ./*.deb) || return 1
    rm -f "$1"/boot/System.map* && rm -rf "$1/usr/share"
    # uncompressed it starts half a second earlier; a compressed one starts too
    uncompressed "$1"/boot/vmlinuz-* >"$1/vmlinux" || mv "$1"/boot/vmlinuz-* "$1/vmlinux"
}

# The kernel inside a bzImage, on stdout. Which compressor Debian uses changes with its releases.
uncompressed() {
    local magic tool at
    while read -r magic tool; do
        command -v "${tool%% *}" >/dev/null || continue
        for at in $(grep -obUaP "$magic" "$1" | cut -d: -f1); do
            # what follows the payload makes every tool complain
            tail -c +"$((at + 1))" "$1" | $tool >"$1.out" 2>/dev/null || true
            if [ "$(head -c 4 "$1.out" | od -An -c | tr -d ' \n')" = '177ELF' ]; then
                cat "$1.out" && rm -f "$1.out"
                return 0
            fi
        done
    done <<'END'
\x02\x21\x4c\x18 lz4 -dc
\x28\xb5\x2f\xfd zstd -dc
\xfd7zXZ\x00 xz -dc
\x1f\x8b\x08 gzip -dc
END
    rm -f "$1.out"
    return 1
}

initrd() {
    piece initrd.cpio "$(sum "$lab/kernel.stamp" "$here/kernel.sh" "$here/initrd-init" "$lab/busybox")" make_initrd
}

make_initrd() {
    local tree name number=100
    tree=$(mktemp -d)
    mkdir -p "$tree"/{bin,dev,proc,sys,newroot,modules}
    cp "$lab/busybox" "$tree/bin/busybox"
    for name in sh mount switch_root insmod cat sleep ls; do ln -s busybox "$tree/bin/$name"; done
    install -m 755 "$here/initrd-init" "$tree/init"
    loaded=" "
    for name in "${modules[@]}"; do load "$name" "$tree/modules"; done
    (cd "$tree" && find . | "$lab/busybox" cpio -o -H newc -R 0:0 2>/dev/null) >"$1"
    rm -rf "$tree"
}

# module NAME FILE: copies it as insmod takes it; fails if the kernel has it built in, or not at all.
module() {
    local file
    file=$(find "$lab/kernel" -name "${1//[-_]/[-_]}.ko*" -print -quit)
    [ -n "$file" ] || return 1
    case $file in
    *.xz) xz -dc "$file" ;;
    *.zst) zstd -dc "$file" ;;
    *) cat "$file" ;;
    esac >"$2"
}

# load MODULE DIR: copies it behind everything it depends on, numbered in the order in which they are to be inserted.
load() {
    local depends each plain=$2/$1.plain
    case $loaded in *" $1 "*) return 0 ;; esac
    loaded="$loaded$1 "
    module "$1" "$plain" || return 0
    depends=$(tr '\0' '\n' <"$plain" | sed -n 's/^depends=//p' | tr ',' ' ')
    for each in $depends; do load "$each" "$2"; done
    mv "$plain" "$2/$number-$1.ko"
    number=$((number + 1))
}
