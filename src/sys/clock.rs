//! The two clocks a deadline is kept on.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC: stops while the guest is suspended.
pub fn monotonic() -> Duration {
    read(ClockId::CLOCK_MONOTONIC)
}

/// CLOCK_BOOTTIME: goes on while the guest is suspended.
pub fn boottime() -> Duration {
    read(ClockId::CLOCK_BOOTTIME)
}

fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).expect("both clocks exist since Linux 2.6.39").into()
}
