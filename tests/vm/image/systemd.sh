# shellcheck shell=bash
systemd_guest() { say "not yet"; }
