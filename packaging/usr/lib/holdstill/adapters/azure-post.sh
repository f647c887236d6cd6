#!/bin/sh
# holdstill for Azure Backup: lets go after the snapshot. See holdstill-pre.sh.
#
# Where it goes  /etc/azure/holdstill-post.sh: root, 0700.
# What it gets   nothing; it runs also when pre failed.
# What it says   0 held until now, or nothing was held; 1 the hold was broken.
exec /usr/bin/holdstill adapter azure post
