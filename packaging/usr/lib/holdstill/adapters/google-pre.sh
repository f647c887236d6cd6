#!/bin/sh
# holdstill for Google's guest agent: everything is held, file systems too, while the snapshot is cut.
#
# Where it goes  /etc/google/snapshots/pre.sh: root, 0700, in a directory 0700.
# What it gets   the disks in the snapshot, TARGET/LUN,… or device names. File systems on other disks are left alone; if one of
#                them is not found here, none is.
# What it says   0 held; else there is no snapshot (one with guest-flush; a script error ends it).
# Time           timeout_in_seconds in instance_configs.cfg, 60 s. The agent sends no post by itself: the deadline lets go.
# What is claimed  what `holdstill freeze` claims, application-consistent at best, if post.sh then ends with 0.
#
# Change the flags below as you like: those of `holdstill freeze`, and --if-not-held go-on.
exec /usr/bin/holdstill adapter --prepare 40s google pre "$1"
