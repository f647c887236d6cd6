# shellcheck shell=bash
# The systemd guest: a Debian of the host's own release with PostgreSQL, MariaDB, the stock guest agent, and holdstill as a
# package would install it. Debian is unpacked once (about a minute); a new holdstill is put into a copy of that in two
# seconds, so that working on it costs no patience.

guest_packages=(systemd-sysv udev dbus postgresql mariadb-server qemu-guest-agent busybox kmod procps util-linux)

# Nothing here has to do with what is tested; under emulation each costs a good part of a second, or writes at any moment.
masked=(
    getty.target getty@tty1.service serial-getty@ttyS0.service console-setup.service keyboard-setup.service
    systemd-networkd.service systemd-timesyncd.service systemd-binfmt.service systemd-hwdb-update.service
    systemd-journal-catalog-update.service systemd-pcrphase.service ldconfig.service
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
    logrotate.timer man-db.timer
)

systemd_guest() {
    local release
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    piece debian.img "$(sum "$release" "$lab/kernel.stamp" "$here"/systemd* "$here/pieces.sh")" make_debian || return 1
    mapfile -t packaged < <(cd "$project/packaging" && find . -mindepth 1 -printf '%P\n' | sort)
    piece systemd.img "$(sum "$lab/debian.img.stamp" "$program" "${packaged[@]}" "${packaged[@]/#/$project/packaging/}")" make_systemd_guest
}

make_debian() {
    local tree
    tree=$(mktemp -d)
    if unpack_debian "$tree" >"$lab/debian.log" 2>&1; then
        ext4 "$1" 3G "$tree" && rm -rf "$tree" "$lab/debian.log"
    else
        tail -20 "$lab/debian.log"
        rm -rf "$tree"
        return 1
    fi
}

unpack_debian() {
    local tree=$1 mirror options=()
    # apt's own mirror, whatever else is in its lists
    # shellcheck disable=SC2016  # apt's variable
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $release" | head -1)
    # a mirror that is a snapshot is old on purpose
    options=(--variant=apt --mode=root --aptopt='Acquire::Check-Valid-Until "false"')
    # what it mounts in the tree stays out of the machine's own mount table, where tests would trip over it
    unshare --mount --propagation private mmdebstrap "${options[@]}" --include="$(IFS=, && echo "${guest_packages[*]}")" "$release" "$tree" "${mirror:-http://deb.debian.org/debian}" || return 1
    mkdir -p "$tree/usr/lib/modules" "$tree/mnt/data" "$tree/usr/local/sbin" "$tree/usr/local/bin"
    find "$lab/kernel" -path '*lib/modules/*' -prune -exec cp -a {} "$tree/usr/lib/modules/" \; || return 1
    chroot "$tree" depmod "$(ls "$tree/usr/lib/modules")" || return 1
    echo lab >"$tree/etc/hostname"
    echo 0123456789abcdef0123456789abcdef >"$tree/etc/machine-id"
    printf '/dev/vda / ext4 defaults 0 0\n/dev/vdb /mnt/data ext4 defaults 0 0\n' >"$tree/etc/fstab"
    install -m 755 "$here/systemd-shell" "$tree/usr/local/sbin/lab-shell"
    install -m 644 "$here/systemd-shell.service" "$tree/etc/systemd/system/lab-shell.service"
    # the tests' own way of waiting, as in the small guest
    ln -s /bin/busybox "$tree/usr/local/bin/usleep"
    chroot "$tree" systemctl --quiet enable lab-shell.service || return 1
    chroot "$tree" systemctl --quiet mask "${masked[@]}" || return 1
    rm -rf "$tree"/var/cache/apt/* "$tree"/var/lib/apt/lists/* "$tree"/usr/share/{doc,man,locale}/* "$tree/etc/resolv.conf"
}

# What a package does, without a kernel that mounts the image: its files are copied and the unit is enabled. The group is
# made at boot, by systemd-sysusers, as in an image that is not booted before it is delivered.
make_systemd_guest() {
    local each
    cp --sparse=always --reflink=auto "$lab/debian.img" "$1" || return 1
    {
        for each in "${packaged[@]}"; do
            if [ -d "$project/packaging/$each" ]; then echo "mkdir /$each"; else echo "write $project/packaging/$each /$each"; fi
        done
        echo "write $program /usr/bin/holdstill"
        echo "symlink /etc/systemd/system/multi-user.target.wants/holdstill.service /lib/systemd/system/holdstill.service"
    } >"$1.commands"
    debugfs -w -f "$1.commands" "$1" >"$1.said" 2>&1
    # it exits 0 whatever happened; directories that exist are the only thing it may complain about
    if grep -vE '^(debugfs|Allocated inode)|already exists' "$1.said"; then return 1; fi
    rm -f "$1.commands" "$1.said"
}
