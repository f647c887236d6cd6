# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_holdstill_global_optspecs
    string join \n socket= endpoint= json h/help
end

function __fish_holdstill_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_holdstill_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_holdstill_using_subcommand
    set -l cmd (__fish_holdstill_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c holdstill -n "__fish_holdstill_needs_command" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_needs_command" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_needs_command" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_needs_command" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_needs_command" -f -a "serve" -d 'Be the daemon'
complete -c holdstill -n "__fish_holdstill_needs_command" -f -a "check" -d 'Say what a freeze would do, what it could claim and who can ask for one; touches nothing'
complete -c holdstill -n "__fish_holdstill_needs_command" -f -a "freeze" -d 'Hold the machine still, and return when it is'
complete -c holdstill -n "__fish_holdstill_needs_command" -f -a "thaw" -d 'Let go, and say whether everything was held until now'
complete -c holdstill -n "__fish_holdstill_needs_command" -f -a "extend" -d 'Move the deadline of the hold in progress'
complete -c holdstill -n "__fish_holdstill_needs_command" -f -a "run" -d 'Hold, run a command, let go'
complete -c holdstill -n "__fish_holdstill_needs_command" -f -a "rehearse" -d 'Hold and let go at once, to see what it costs; leaves no receipt'
complete -c holdstill -n "__fish_holdstill_needs_command" -f -a "status" -d 'Say where things stand; exit 0 if holds are accepted'
complete -c holdstill -n "__fish_holdstill_needs_command" -f -a "watch" -d 'Print what happens, as it happens'
complete -c holdstill -n "__fish_holdstill_needs_command" -f -a "history" -d 'List finished and refused holds, or show one'
complete -c holdstill -n "__fish_holdstill_needs_command" -f -a "config" -d 'Print every configuration value in force and where it came from'
complete -c holdstill -n "__fish_holdstill_needs_command" -f -a "hooks" -d 'List, add, remove or test the scripts run around a hold'
complete -c holdstill -n "__fish_holdstill_needs_command" -f -a "receipt" -d 'Print the receipt a hold left on a file system'
complete -c holdstill -n "__fish_holdstill_needs_command" -f -a "verify" -d 'Say what a copy of the disks can prove'
complete -c holdstill -n "__fish_holdstill_needs_command" -f -a "rescue" -d 'Let go of whatever a dead daemon left held'
complete -c holdstill -n "__fish_holdstill_needs_command" -f -a "adapter" -d 'Answer another agent as it expects to be answered; what `hooks install-adapter` installs calls it'
complete -c holdstill -n "__fish_holdstill_needs_command" -f -a "gate" -d 'The process a command of `run` waits in; started by it'
complete -c holdstill -n "__fish_holdstill_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c holdstill -n "__fish_holdstill_using_subcommand serve" -l config -d 'Read this configuration file alone' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand serve" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand serve" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand serve" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand serve" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand check" -l id -d 'Name of the hold; asking again with the same name is safe [default: chosen by the daemon]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand check" -l for -d 'Longest time to hold, from the moment all is held, e.g. 30s [default: [hold] max]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand check" -l prepare -d 'Longest time to prepare, while nobody waits [default: [hold] prepare]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand check" -l quiesce -d 'Longest time anyone waits before all is held [default: [hold] quiesce]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand check" -l require -d 'The least it must be worth [default: [hold] require]' -r -f -a "application\t''
filesystem\t''
crash\t''"
complete -c holdstill -n "__fish_holdstill_using_subcommand check" -l mount -d 'Hold only this mount point or glob (repeatable)' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand check" -l exclude -d 'Leave this mount point or glob alone (repeatable)' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand check" -l disk -d 'A disk that will be in the snapshot: /dev/NAME, serial=…, wwn=…, pci=… or nguid=… (repeatable)' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand check" -l capture -d 'When the copy of database logs is taken' -r -f -a "while-held\t''
logs-after-thaw\t''"
complete -c holdstill -n "__fish_holdstill_using_subcommand check" -l label -d 'A few words for reports and history' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand check" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand check" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand check" -l caller-freezes -d 'The caller freezes the file systems itself, once this has returned, and thaws them before it lets go: hold databases and hooks only, and claim no more'
complete -c holdstill -n "__fish_holdstill_using_subcommand check" -l strict -d 'Exit 4 also when there are reservations'
complete -c holdstill -n "__fish_holdstill_using_subcommand check" -l sql -d 'Print the least role each database here needs, as SQL to paste, and nothing else'
complete -c holdstill -n "__fish_holdstill_using_subcommand check" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand check" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand freeze" -l id -d 'Name of the hold; asking again with the same name is safe [default: chosen by the daemon]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand freeze" -l for -d 'Longest time to hold, from the moment all is held, e.g. 30s [default: [hold] max]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand freeze" -l prepare -d 'Longest time to prepare, while nobody waits [default: [hold] prepare]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand freeze" -l quiesce -d 'Longest time anyone waits before all is held [default: [hold] quiesce]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand freeze" -l require -d 'The least it must be worth [default: [hold] require]' -r -f -a "application\t''
filesystem\t''
crash\t''"
complete -c holdstill -n "__fish_holdstill_using_subcommand freeze" -l mount -d 'Hold only this mount point or glob (repeatable)' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand freeze" -l exclude -d 'Leave this mount point or glob alone (repeatable)' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand freeze" -l disk -d 'A disk that will be in the snapshot: /dev/NAME, serial=…, wwn=…, pci=… or nguid=… (repeatable)' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand freeze" -l capture -d 'When the copy of database logs is taken' -r -f -a "while-held\t''
logs-after-thaw\t''"
complete -c holdstill -n "__fish_holdstill_using_subcommand freeze" -l label -d 'A few words for reports and history' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand freeze" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand freeze" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand freeze" -l caller-freezes -d 'The caller freezes the file systems itself, once this has returned, and thaws them before it lets go: hold databases and hooks only, and claim no more'
complete -c holdstill -n "__fish_holdstill_using_subcommand freeze" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand freeze" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand thaw" -l snapshot-ref -d 'What the snapshot is called; kept in the history' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand thaw" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand thaw" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand thaw" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand thaw" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand extend" -l for -d 'The new total, counted from the moment all was held' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand extend" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand extend" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand extend" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand extend" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand run" -l id -d 'Name of the hold; asking again with the same name is safe [default: chosen by the daemon]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand run" -l for -d 'Longest time to hold, from the moment all is held, e.g. 30s [default: [hold] max]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand run" -l prepare -d 'Longest time to prepare, while nobody waits [default: [hold] prepare]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand run" -l quiesce -d 'Longest time anyone waits before all is held [default: [hold] quiesce]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand run" -l require -d 'The least it must be worth [default: [hold] require]' -r -f -a "application\t''
filesystem\t''
crash\t''"
complete -c holdstill -n "__fish_holdstill_using_subcommand run" -l mount -d 'Hold only this mount point or glob (repeatable)' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand run" -l exclude -d 'Leave this mount point or glob alone (repeatable)' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand run" -l disk -d 'A disk that will be in the snapshot: /dev/NAME, serial=…, wwn=…, pci=… or nguid=… (repeatable)' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand run" -l capture -d 'When the copy of database logs is taken' -r -f -a "while-held\t''
logs-after-thaw\t''"
complete -c holdstill -n "__fish_holdstill_using_subcommand run" -l label -d 'A few words for reports and history' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand run" -l keep -d 'After the release, keep this file or directory if the command wrote it (repeatable)' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand run" -l report -d 'After the release, write the hold\'s record to this file' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand run" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand run" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand run" -l caller-freezes -d 'The caller freezes the file systems itself, once this has returned, and thaws them before it lets go: hold databases and hooks only, and claim no more'
complete -c holdstill -n "__fish_holdstill_using_subcommand run" -l no-overlay -d 'Let the command write to the held file systems themselves: it will block if it does'
complete -c holdstill -n "__fish_holdstill_using_subcommand run" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand run" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand rehearse" -l id -d 'Name of the hold; asking again with the same name is safe [default: chosen by the daemon]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand rehearse" -l for -d 'Longest time to hold, from the moment all is held, e.g. 30s [default: [hold] max]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand rehearse" -l prepare -d 'Longest time to prepare, while nobody waits [default: [hold] prepare]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand rehearse" -l quiesce -d 'Longest time anyone waits before all is held [default: [hold] quiesce]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand rehearse" -l require -d 'The least it must be worth [default: [hold] require]' -r -f -a "application\t''
filesystem\t''
crash\t''"
complete -c holdstill -n "__fish_holdstill_using_subcommand rehearse" -l mount -d 'Hold only this mount point or glob (repeatable)' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand rehearse" -l exclude -d 'Leave this mount point or glob alone (repeatable)' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand rehearse" -l disk -d 'A disk that will be in the snapshot: /dev/NAME, serial=…, wwn=…, pci=… or nguid=… (repeatable)' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand rehearse" -l capture -d 'When the copy of database logs is taken' -r -f -a "while-held\t''
logs-after-thaw\t''"
complete -c holdstill -n "__fish_holdstill_using_subcommand rehearse" -l label -d 'A few words for reports and history' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand rehearse" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand rehearse" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand rehearse" -l caller-freezes -d 'The caller freezes the file systems itself, once this has returned, and thaws them before it lets go: hold databases and hooks only, and claim no more'
complete -c holdstill -n "__fish_holdstill_using_subcommand rehearse" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand rehearse" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand status" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand status" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand status" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand status" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand watch" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand watch" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand watch" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand watch" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand history" -l limit -d 'How many to list' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand history" -l svg -d 'Draw that hold as SVG, into FILE or to stdout' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand history" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand history" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand history" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand history" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand config" -l config -d 'Read this configuration file alone' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand config" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand config" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand config" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand config" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and not __fish_seen_subcommand_from list add remove install-adapter test help" -l config -d 'Read this configuration file alone' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and not __fish_seen_subcommand_from list add remove install-adapter test help" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and not __fish_seen_subcommand_from list add remove install-adapter test help" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and not __fish_seen_subcommand_from list add remove install-adapter test help" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and not __fish_seen_subcommand_from list add remove install-adapter test help" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and not __fish_seen_subcommand_from list add remove install-adapter test help" -f -a "list" -d 'List what will run, in order, and what is ignored'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and not __fish_seen_subcommand_from list add remove install-adapter test help" -f -a "add" -d 'Copy a script into the hooks directory, or switch on scripts written for another agent'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and not __fish_seen_subcommand_from list add remove install-adapter test help" -f -a "remove" -d 'Delete a script, and its settings, from the hooks directory; other agents\' scripts are only switched off'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and not __fish_seen_subcommand_from list add remove install-adapter test help" -f -a "install-adapter" -d 'Let another agent that makes the snapshots drive holdstill: put an adapter where it looks for scripts'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and not __fish_seen_subcommand_from list add remove install-adapter test help" -f -a "test" -d 'Run `freeze` then `thaw` of one hook, or of all in order, holding nothing else'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and not __fish_seen_subcommand_from list add remove install-adapter test help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from list" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from list" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from list" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from add" -l name -d 'Its name there, e.g. 10-orders [default: the file\'s own, without .sample]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from add" -l order -d 'The number its name begins with: hooks run in the order of their names' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from add" -l timeout -d 'How long one phase may take [default: [hooks] timeout]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from add" -l user -d 'Whom it runs as [default: root]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from add" -l phase -d 'A phase it takes part in: prepare, freeze. May be given more than once; thaw comes always [default: freeze]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from add" -l holds -d 'A running engine that it brings to a consistent point, e.g. redis: then that one does not lower the level. May be given more than once' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from add" -l convention -d 'The scripts are another agent\'s: qemu, vmware, vmware-legacy, nutanix, google, azure or aws-dlm' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from add" -l argument -d 'What VMware\'s tools.conf calls scriptArg' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from add" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from add" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from add" -l required -d 'A failure fails the hold [default, but for some conventions]'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from add" -l optional -d 'A failure lowers the level, and is said'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from add" -l force -d 'Replace one of the same name'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from add" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from add" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from remove" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from remove" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from remove" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from remove" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from install-adapter" -l root -d 'Of a machine mounted here' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from install-adapter" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from install-adapter" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from install-adapter" -l list -d 'List the adapters there are, and which of them are installed'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from install-adapter" -l remove -d 'Remove it again'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from install-adapter" -l force -d 'Take the place of what is there already'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from install-adapter" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from install-adapter" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from test" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from test" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from test" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from test" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from help" -f -a "list" -d 'List what will run, in order, and what is ignored'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from help" -f -a "add" -d 'Copy a script into the hooks directory, or switch on scripts written for another agent'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from help" -f -a "remove" -d 'Delete a script, and its settings, from the hooks directory; other agents\' scripts are only switched off'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from help" -f -a "install-adapter" -d 'Let another agent that makes the snapshots drive holdstill: put an adapter where it looks for scripts'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from help" -f -a "test" -d 'Run `freeze` then `thaw` of one hook, or of all in order, holding nothing else'
complete -c holdstill -n "__fish_holdstill_using_subcommand hooks; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c holdstill -n "__fish_holdstill_using_subcommand receipt" -l config -d 'Read this configuration file alone' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand receipt" -l svg -d 'Draw the hold as SVG, into FILE or to stdout' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand receipt" -l report -d 'Show a report that was saved in place of a receipt: what `thaw --json`, `history ID --json` or `run --report` wrote' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand receipt" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand receipt" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand receipt" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand receipt" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand verify" -l config -d 'Read this configuration file alone' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand verify" -l record -d 'The caller\'s record of the hold: what `freeze --json`, `thaw --json` or `run --report` wrote' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand verify" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand verify" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand verify" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand verify" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand rescue" -l config -d 'Read this configuration file alone' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand rescue" -l run -d 'The run directory of the dead daemon [default: [paths] run]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand rescue" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand rescue" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand rescue" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand rescue" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand adapter" -l id -d 'Name of the hold; asking again with the same name is safe [default: chosen by the daemon]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand adapter" -l for -d 'Longest time to hold, from the moment all is held, e.g. 30s [default: [hold] max]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand adapter" -l prepare -d 'Longest time to prepare, while nobody waits [default: [hold] prepare]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand adapter" -l quiesce -d 'Longest time anyone waits before all is held [default: [hold] quiesce]' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand adapter" -l require -d 'The least it must be worth [default: [hold] require]' -r -f -a "application\t''
filesystem\t''
crash\t''"
complete -c holdstill -n "__fish_holdstill_using_subcommand adapter" -l mount -d 'Hold only this mount point or glob (repeatable)' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand adapter" -l exclude -d 'Leave this mount point or glob alone (repeatable)' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand adapter" -l disk -d 'A disk that will be in the snapshot: /dev/NAME, serial=…, wwn=…, pci=… or nguid=… (repeatable)' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand adapter" -l capture -d 'When the copy of database logs is taken' -r -f -a "while-held\t''
logs-after-thaw\t''"
complete -c holdstill -n "__fish_holdstill_using_subcommand adapter" -l label -d 'A few words for reports and history' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand adapter" -l if-not-held -d 'What to answer if nothing could be held' -r -f -a "fail\t'that it failed'
go-on\t'that it may go on: its snapshot is as after a power cut'"
complete -c holdstill -n "__fish_holdstill_using_subcommand adapter" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand adapter" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand adapter" -l caller-freezes -d 'The caller freezes the file systems itself, once this has returned, and thaws them before it lets go: hold databases and hooks only, and claim no more'
complete -c holdstill -n "__fish_holdstill_using_subcommand adapter" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand adapter" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c holdstill -n "__fish_holdstill_using_subcommand gate" -l stage -d 'Where to stage the overlay; without it there is none' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand gate" -l held -d 'What is held, as MAJOR:MINOR' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand gate" -l socket -d 'The daemon\'s socket, or HOLDSTILL_SOCKET [default: `[listen] unix` of the configuration]' -r -F
complete -c holdstill -n "__fish_holdstill_using_subcommand gate" -l endpoint -d 'A daemon elsewhere, or HOLDSTILL_ENDPOINT: vsock:CID:PORT a guest of this host; vsock:/PATH:PORT a guest whose vsock device has this socket (firecracker, cloud-hypervisor, vhost-device-vsock); unix:/PATH' -r
complete -c holdstill -n "__fish_holdstill_using_subcommand gate" -l json -d 'Print exactly one JSON document on stdout; text for people goes to stderr'
complete -c holdstill -n "__fish_holdstill_using_subcommand gate" -s h -l help -d 'Print help'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and not __fish_seen_subcommand_from serve check freeze thaw extend run rehearse status watch history config hooks receipt verify rescue adapter gate help" -f -a "serve" -d 'Be the daemon'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and not __fish_seen_subcommand_from serve check freeze thaw extend run rehearse status watch history config hooks receipt verify rescue adapter gate help" -f -a "check" -d 'Say what a freeze would do, what it could claim and who can ask for one; touches nothing'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and not __fish_seen_subcommand_from serve check freeze thaw extend run rehearse status watch history config hooks receipt verify rescue adapter gate help" -f -a "freeze" -d 'Hold the machine still, and return when it is'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and not __fish_seen_subcommand_from serve check freeze thaw extend run rehearse status watch history config hooks receipt verify rescue adapter gate help" -f -a "thaw" -d 'Let go, and say whether everything was held until now'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and not __fish_seen_subcommand_from serve check freeze thaw extend run rehearse status watch history config hooks receipt verify rescue adapter gate help" -f -a "extend" -d 'Move the deadline of the hold in progress'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and not __fish_seen_subcommand_from serve check freeze thaw extend run rehearse status watch history config hooks receipt verify rescue adapter gate help" -f -a "run" -d 'Hold, run a command, let go'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and not __fish_seen_subcommand_from serve check freeze thaw extend run rehearse status watch history config hooks receipt verify rescue adapter gate help" -f -a "rehearse" -d 'Hold and let go at once, to see what it costs; leaves no receipt'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and not __fish_seen_subcommand_from serve check freeze thaw extend run rehearse status watch history config hooks receipt verify rescue adapter gate help" -f -a "status" -d 'Say where things stand; exit 0 if holds are accepted'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and not __fish_seen_subcommand_from serve check freeze thaw extend run rehearse status watch history config hooks receipt verify rescue adapter gate help" -f -a "watch" -d 'Print what happens, as it happens'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and not __fish_seen_subcommand_from serve check freeze thaw extend run rehearse status watch history config hooks receipt verify rescue adapter gate help" -f -a "history" -d 'List finished and refused holds, or show one'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and not __fish_seen_subcommand_from serve check freeze thaw extend run rehearse status watch history config hooks receipt verify rescue adapter gate help" -f -a "config" -d 'Print every configuration value in force and where it came from'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and not __fish_seen_subcommand_from serve check freeze thaw extend run rehearse status watch history config hooks receipt verify rescue adapter gate help" -f -a "hooks" -d 'List, add, remove or test the scripts run around a hold'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and not __fish_seen_subcommand_from serve check freeze thaw extend run rehearse status watch history config hooks receipt verify rescue adapter gate help" -f -a "receipt" -d 'Print the receipt a hold left on a file system'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and not __fish_seen_subcommand_from serve check freeze thaw extend run rehearse status watch history config hooks receipt verify rescue adapter gate help" -f -a "verify" -d 'Say what a copy of the disks can prove'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and not __fish_seen_subcommand_from serve check freeze thaw extend run rehearse status watch history config hooks receipt verify rescue adapter gate help" -f -a "rescue" -d 'Let go of whatever a dead daemon left held'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and not __fish_seen_subcommand_from serve check freeze thaw extend run rehearse status watch history config hooks receipt verify rescue adapter gate help" -f -a "adapter" -d 'Answer another agent as it expects to be answered; what `hooks install-adapter` installs calls it'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and not __fish_seen_subcommand_from serve check freeze thaw extend run rehearse status watch history config hooks receipt verify rescue adapter gate help" -f -a "gate" -d 'The process a command of `run` waits in; started by it'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and not __fish_seen_subcommand_from serve check freeze thaw extend run rehearse status watch history config hooks receipt verify rescue adapter gate help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and __fish_seen_subcommand_from hooks" -f -a "list" -d 'List what will run, in order, and what is ignored'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and __fish_seen_subcommand_from hooks" -f -a "add" -d 'Copy a script into the hooks directory, or switch on scripts written for another agent'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and __fish_seen_subcommand_from hooks" -f -a "remove" -d 'Delete a script, and its settings, from the hooks directory; other agents\' scripts are only switched off'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and __fish_seen_subcommand_from hooks" -f -a "install-adapter" -d 'Let another agent that makes the snapshots drive holdstill: put an adapter where it looks for scripts'
complete -c holdstill -n "__fish_holdstill_using_subcommand help; and __fish_seen_subcommand_from hooks" -f -a "test" -d 'Run `freeze` then `thaw` of one hook, or of all in order, holding nothing else'
