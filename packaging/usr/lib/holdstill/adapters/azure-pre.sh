#!/bin/sh
# holdstill for Azure Backup: its extension freezes the file systems, holdstill holds databases and hooks around that.
#
# Where it goes  /etc/azure/holdstill-pre.sh: root, 0700; named in /etc/azure/VMSnapshotScriptPluginConfig.json: root, 0600.
#                The extension ignores scripts and a configuration that anybody else may read or write.
# What it gets   nothing. Its output is a pipe that nobody reads.
# What it says   0 held, or there is no database and no hook; 1 not held. The backup then goes on or not, as
#                continueBackupOnFailure says, file-system-consistent. With --if-not-held go-on a warning, 2.
# Time           timeoutInSeconds there. A script that is late is not ended: it holds when nobody waits any more, until
#                post or its deadline.
# What is claimed  each database what its session proves; of file systems nothing: they are the extension's.
#
# Change the flags below as you like: those of `holdstill freeze`, and --if-not-held go-on.
exec /usr/bin/holdstill adapter --caller-freezes --prepare 40s azure pre
