#!/bin/bash
# Unpacks database servers of other releases than this machine's, into target/servers (or $HOLDSTILL_SERVERS): one directory
# per release of Debian or Ubuntu, with nothing in it but the servers and what they are linked with. Nothing is installed,
# nothing is configured; tests start them within these directories. Each is made again only when its line below has changed.
# Needs root and mmdebstrap; changes nothing of this machine.
#
#   tests/servers/build.sh           all of them
#   tests/servers/build.sh NAME…     only these (and what they need)
#
# What cannot be made leaves NAME.missing with the reason, and tests that need it are skipped with that reason. The last line
# says what there is.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$here/../.." && pwd)
servers=${HOLDSTILL_SERVERS:-$project/target/servers}
export LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$servers"
servers=$(realpath "$servers")

# NAME, MIRROR, PROGRAMS that must run there, PACKAGES. Trixie comes first: it brings the keys that Ubuntu's packages are
# signed with. initdb wants a shell.
trees() {
    cat <<'END'
trixie   debian usr/sbin/mariadbd,usr/lib/postgresql/17/bin/postgres mariadb-server-core,postgresql-17,dash,ubuntu-keyring
sid      debian usr/sbin/mysqld                                      mysql-server-core,dash
bullseye debian usr/sbin/mariadbd,usr/lib/postgresql/13/bin/postgres mariadb-server-core-10.5,postgresql-13,dash
noble    ubuntu usr/sbin/mysqld,usr/lib/postgresql/16/bin/postgres   mysql-server-core-8.0,postgresql-16,dash
jammy    ubuntu usr/sbin/mariadbd,usr/lib/postgresql/14/bin/postgres mariadb-server-core-10.6,postgresql-14,dash
resolute ubuntu usr/sbin/mysqld,usr/lib/postgresql/18/bin/postgres   mysql-server-core,postgresql-18,dash
focal    ubuntu usr/lib/postgresql/12/bin/postgres                   postgresql-12,dash
bionic   ubuntu usr/sbin/mysqld                                      mysql-server-core-5.7,dash
END
}

# Of no use to a server that is never compiled with, translated, or told to compile queries.
useless=(
    usr/share/{doc,man,locale,info,lintian,perl,perl5,python3,icu,mysql-test,i18n,consolefonts,consoletrans}
    usr/include usr/lib/python3 usr/lib/python3.* usr/lib/llvm-* usr/games
    usr/lib/postgresql/*/lib/{bitcode,llvmjit.so,pgxs} usr/share/postgresql/*/man
    usr/lib/x86_64-linux-gnu/{perl,perl-base,perl5,gconv,dri,'libLLVM*','libz3.so*','*.a'}
    usr/lib/*.a usr/bin/perl* usr/bin/mysql_embedded usr/sbin/mysqld-debug usr/lib/mysql/plugin/debug
    var/cache/apt/* var/lib/apt/* var/log/* boot
)

say() { echo "$*" >&2; }

# make NAME MIRROR PROGRAMS PACKAGES
make() {
    local name=$1 mirror=$2 programs=$3 packages=$4 new=$servers/$1.new log=$servers/$1.log begun=$SECONDS stamp why
    stamp=$(echo "$*" "${useless[@]}" | sha256sum | cut -d' ' -f1)
    if [ -d "$servers/$name" ] && [ "$(cat "$servers/$name.stamp" 2>/dev/null)" = "$stamp" ]; then return 0; fi
    rm -rf "$new" "${servers:?}/$name" "$servers/$name.stamp"
    if [ "$mirror" = ubuntu ] && ! reachable; then
        echo "$name: archive.ubuntu.com cannot be reached from here" >"$servers/$name.missing"
        say "$(cat "$servers/$name.missing")"
        return 0
    fi
    if unpack "$name" "$mirror" "$packages" "$new" >"$log" 2>&1 && trim "$new" >>"$log" 2>&1 && works "$new" "$programs" >>"$log" 2>&1; then
        mv "$new" "$servers/$name"
        echo "$stamp" >"$servers/$name.stamp"
        rm -f "$log" "$servers/$name.missing"
        say "$name: made in $((SECONDS - begun)) s"
    else
        rm -rf "$new"
        why=$(grep -E '^(E|Err)|[Ff]ailed|cannot|not found' "$log" | grep -v 'mmdebstrap failed' | head -1 || true)
        echo "$name could not be unpacked from $mirror's packages: ${why:-see $log}" >"$servers/$name.missing"
        say "$(cat "$servers/$name.missing") (see $log)"
    fi
}

# Whether there is any way to Ubuntu's packages: elsewhere than where this was written there may be only Debian's.
reachable() { timeout 20 bash -c 'exec 3<>/dev/tcp/archive.ubuntu.com/80' 2>/dev/null; }

# unpack NAME MIRROR PACKAGES TREE
unpack() {
    local keys at suites=("$1") components=main sources=()
    case $2 in
    debian)
        keys=/usr/share/keyrings/debian-archive-keyring.gpg
        # apt's own mirror, whatever else is in its lists
        # shellcheck disable=SC2016  # apt's variable
        at=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -1)
        at=${at:-http://deb.debian.org/debian}
        ;;
    ubuntu)
        keys=$servers/trixie/usr/share/keyrings/ubuntu-archive-keyring.gpg
        at=http://archive.ubuntu.com/ubuntu
        suites+=("$1-updates")
        # older ones have libraries there that were moved since
        components="main universe"
        ;;
    esac
    [ -e "$keys" ] || { echo "no keys to check the packages with: $keys not found"; return 1; }
    for suite in "${suites[@]}"; do sources+=("deb [arch=amd64 signed-by=$keys] $at $suite $components"); done
    # a mirror that is a snapshot is old on purpose; what is mounted meanwhile stays out of the machine's mount table
    unshare --mount --propagation private mmdebstrap --quiet --variant=extract --mode=root \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Languages "none"' \
        --include="$3" "$1" "$4" "${sources[@]}" || return 1
    # releases before /usr was merged have the directories
    for at in bin lib lib64 sbin; do
        [ -e "$4/$at" ] || ln -s "usr/$at" "$4/$at" || return 1
    done
    # where installing the package would make it
    [ -e "$4/bin/sh" ] || ln -s dash "$4/bin/sh"
}

trim() {
    local each
    for each in "${useless[@]}"; do
        # shellcheck disable=SC2086  # a pattern
        (cd "$1" && rm -rf $each)
    done
    mkdir -p "$1"/{dev,proc,sys,run,tmp,mnt,srv}
}

# works TREE PROGRAMS: the servers say their versions there.
works() {
    local program
    for program in ${2//,/ }; do
        chroot "$1" "/$program" --version || { echo "$program cannot run"; return 1; }
    done
}

exec 9>"$servers/lock"
flock -w 900 9 || { echo "another build has been at it for 15 minutes" >&2; exit 1; }

if [ "$(id -u)" != 0 ]; then why="not root"; elif ! command -v mmdebstrap >/dev/null; then why="no mmdebstrap here"; fi
wanted=" ${*:-$(trees | awk '{ print $1 }' | xargs)} "
while read -r name mirror programs packages; do
    case "$wanted" in *" $name "*) ;; *) [ "$name" = trixie ] || continue ;; esac
    if [ -n "${why:-}" ]; then
        [ -d "$servers/$name" ] || echo "$name was not unpacked: $why" >"$servers/$name.missing"
        continue
    fi
    make "$name" "$mirror" "$programs" "$packages" &
    # trixie alone: the others need its keys; then two at a time
    if [ "$name" = trixie ]; then wait; fi
    while [ "$(jobs -rp | wc -l)" -ge 2 ]; do wait -n || true; done
done < <(trees)
wait
# named WHAT: the names of which there is a file WHAT.
named() { find "$servers" -maxdepth 1 -name "*.$1" -printf '%f\n' | sed 's/\.[a-z]*$//' | sort | xargs; }
there=$(named stamp) missing=$(named missing)
echo "$servers: ${there:-nothing}, $(du -sm "$servers" | cut -f1) MB${missing:+; missing: $missing}"
