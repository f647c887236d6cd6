#!/bin/sh
# holdstill for Google's guest agent: lets go after the snapshot. See pre.sh beside it.
#
# Where it goes  /etc/google/snapshots/post.sh: root, 0700.
# What it gets   as pre.sh; only what pre.sh held is let go.
# What it says   0 all was held until now, or nothing was; else throw that snapshot away.
exec /usr/bin/holdstill adapter google post "$1"
