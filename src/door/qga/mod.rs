//! The QEMU guest-agent channel: the one protocol QEMU, libvirt, OpenStack, Proxmox, KubeVirt and oVirt speak to a guest.
//!
//! ```text
//!   port ──▶ wire ──▶ agent ──┬─▶ freeze   status, freeze, freeze-list, thaw: a hold
//!   bytes    lines    one at  ├─▶ answers  ping, info, sync, get-fsinfo …: read here
//!                     a time  └─▶ relay    all else: the stock qemu-ga, if there is one
//! ```
//!
//! Strictly one request after another: Proxmox asks for the status on a new connection while a freeze still runs, and
//! takes the answer as proof that the freeze has ended. So nothing here answers out of turn, and a host that hangs up
//! says nothing by it.

pub mod answers;
pub mod policy;
pub mod relay;
pub mod reply;
