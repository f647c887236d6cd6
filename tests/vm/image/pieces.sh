# shellcheck shell=bash
# What the pieces have in common: when one has to be made again, and which files a program needs to run elsewhere.

say() { echo "$*" >&2; }

# What apt knows: an image of a machine is often delivered without.
apt_lists() {
    apt-cache show --no-all-versions linux-image-cloud-amd64 >/dev/null 2>&1 || apt-get update -qq
}

# sum FILE-OR-WORD…: one line that changes when any of the files or words does.
sum() {
    local each
    for each in "$@"; do
        if [ -f "$each" ]; then sha256sum <"$each"; else echo "$each"; fi
    done | sha256sum | cut -d' ' -f1
}

# piece NAME SUM FUNCTION: calls FUNCTION with the path of a file to make, unless $lab/NAME was made from the same SUM.
# A function that fails leaves the old piece, without its stamp.
piece() {
    local name=$1 stamp=$lab/$1.stamp new=$lab/$1.new begun=$SECONDS
    if [ -e "$lab/$name" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$2" ]; then return 0; fi
    rm -rf "$stamp" "$new"
    "$3" "$new" || { say "failed to make $name"; return 1; }
    rm -rf "${lab:?}/$name"
    mv "$new" "$lab/$name"
    echo "$2" >"$stamp"
    say "$name: made in $((SECONDS - begun)) s"
}

# libraries PROGRAM…: the shared libraries they are linked with, the loader included.
libraries() {
    ldd "$@" 2>/dev/null | grep -oE '/[^ :)]+' | grep -vxF "$(printf '%s\n' "$@")" | sort -u
}

# install_program ROOT PROGRAM [AS]: with its libraries, where the loader looks for them.
install_program() {
    local library
    install -D -m 755 "$2" "$1/${3:-$2}"
    libraries "$2" | while read -r library; do
        [ -e "$1/$library" ] || install -D -m 755 "$library" "$1/$library"
    done
}

# ext4 IMAGE SIZE [TREE]: nothing is left to be initialised later, or a guest's own threads would write at any moment.
ext4() {
    local tree=()
    [ -z "${3:-}" ] || tree=(-d "$3")
    truncate -s "$2" "$1"
    mke2fs -q -F -t ext4 -b 4096 -E lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0 "${tree[@]}" "$1"
}
