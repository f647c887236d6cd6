#!/bin/bash
# Builds what the VM tests boot, into target/vm-lab (or $HOLDSTILL_VM_LAB). Each piece is made again only when what it is
# made from has changed. Needs root and the packages `tests/run` installs; changes nothing of this machine.
#
#   tests/vm/image/build.sh            all of it
#   tests/vm/image/build.sh small      the kernel, the small guest and the second disk: enough for most tests
#   tests/vm/image/build.sh vsock      the user-space vsock device
#   tests/vm/image/build.sh systemd    the guest with systemd and databases
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$here/../../.." && pwd)
lab=${HOLDSTILL_VM_LAB:-$project/target/vm-lab}
program=${HOLDSTILL_RELEASE:-$project/target/release/holdstill}
export LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$lab"
lab=$(realpath "$lab")

# shellcheck source=tests/vm/image/pieces.sh
. "$here/pieces.sh"
for part in kernel small systemd vsock; do
    # shellcheck source=/dev/null  # one of ours
    . "$here/$part.sh"
done

[ -x "$program" ] || { echo "no $program: run cargo build --release first" >&2; exit 1; }

exec 9>"$lab/lock"
flock -w 900 9 || { echo "another build has been at it for 15 minutes" >&2; exit 1; }

case ${1:-all} in
small) kernel && static_busybox && initrd && second_disk && small_guest ;;
systemd) kernel && static_busybox && initrd && second_disk && systemd_guest ;;
vsock) vsock_device ;;
all)
    # compiling takes a while and hardly any memory
    vsock_device >"$lab/vsock.log" 2>&1 &
    device=$!
    kernel && static_busybox && initrd && second_disk && small_guest && systemd_guest
    wait $device || { tail -20 "$lab/vsock.log"; exit 1; }
    ;;
*) sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0"; exit 2 ;;
esac
