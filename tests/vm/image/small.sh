# shellcheck shell=bash
# The small guest: busybox, holdstill, the stock guest agent, and nothing that writes by itself. Boots in three seconds.

guest_programs=(/usr/sbin/qemu-ga /sbin/fsfreeze /usr/bin/socat /sbin/mke2fs)

# One that needs no libraries. Debian has it as another package than the one most machines have, and installing it would
# remove that: so it is only unpacked.
static_busybox() {
    local own
    own=$(command -v busybox || true)
    if [ -n "$own" ] && ! ldd "$own" >/dev/null 2>&1; then
        piece busybox "$(sum "$own")" copy_busybox
    else
        piece busybox "unpacked $(sum "$here/small.sh")" unpack_busybox
    fi
}

copy_busybox() { install -m 755 "$(command -v busybox)" "$1"; }

unpack_busybox() {
    local tree
    tree=$(mktemp -d)
    apt_lists
    (cd "$tree" && apt-get download -qq -o APT::Sandbox::User=root busybox-static && dpkg -x busybox-static_*.deb .) || return 1
    install -m 755 "$(find "$tree" -type f -name busybox)" "$1"
    rm -rf "$tree"
}

small_guest() {
    local each
    local -a used=()
    for each in "${guest_programs[@]}"; do used+=("$(command -v "$(basename "$each")")"); done
    piece small.img "$(sum "$lab/kernel.stamp" "$program" "$here"/small* "$here/pieces.sh" "$lab/busybox" "${used[@]}")" make_small_guest
}

make_small_guest() {
    local tree each
    tree=$(mktemp -d)
    mkdir -p "$tree"/{bin,sbin,usr/bin,usr/sbin,dev,proc,sys,run,tmp,etc/holdstill/hooks.d,root,srv,mnt/data,var/lib,var/log}
    ln -s /run "$tree/var/run"
    cp "$lab/busybox" "$tree/bin/busybox"
    for each in $("$lab/busybox" --list); do [ -e "$tree/bin/$each" ] || ln -s busybox "$tree/bin/$each"; done
    for each in "${guest_programs[@]}"; do
        # busybox has some of these too, with other options
        rm -f "$tree/bin/$(basename "$each")"
        install_program "$tree" "$(command -v "$(basename "$each")")" "$each"
    done
    install_program "$tree" "$program" /usr/bin/holdstill
    cp -a "$project/packaging/etc/holdstill/holdstill.toml" "$tree/etc/holdstill/"
    install -m 755 "$here/small-init" "$tree/sbin/init"
    # for a test that wants to be a program in the guest that asks over vsock; not loaded
    module vsock_loopback "$tree/lib/vsock_loopback.ko" || true
    # for a test that wants disks that say who made them, and an array of them; in the order in which they are to be loaded
    mkdir "$tree/lib/disks"
    loaded=" " number=100
    for each in virtio_scsi sd_mod raid1; do load "$each" "$tree/lib/disks"; done
    echo 'root:x:0:0:root:/root:/bin/sh' >"$tree/etc/passwd"
    echo 'root:x:0:' >"$tree/etc/group"
    printf 'NAME="lab"\nID=lab\nVERSION_ID="1"\nPRETTY_NAME="The small guest"\n' >"$tree/etc/os-release"
    ext4 "$1" 256M "$tree"
    rm -rf "$tree"
}

# Room for as much unwritten data as the bench wants; the file is sparse.
second_disk() {
    piece data.img "$(sum "$here/small.sh" "$here/pieces.sh")" make_second_disk
}

make_second_disk() { ext4 "$1" 1G; }
