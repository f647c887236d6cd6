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

pub mod agent;
pub mod answers;
pub mod channel;
pub mod freeze;
pub mod policy;
pub mod port;
pub mod relay;
pub mod reply;
pub mod wire;

use std::{path::Path, sync::Arc};

use tokio::sync::watch;

use self::{agent::Agent, freeze::Freezer, policy::Policy, relay::Relay};
use crate::{config::Settings, hold::Handle};

/// Serves the channel, wherever it is, until the other end of `stop` is dropped. Its going wrong stops nobody else from
/// asking.
pub async fn serve(settings: Arc<Settings>, handle: Handle, mut stop: watch::Receiver<()>) {
    let (root, run) = (Path::new("/"), &settings.paths.run);
    let policy = Policy::read(root);
    for rule in policy.rules() {
        tracing::info!("the guest-agent channel obeys the stock agent's rule: {rule}");
    }
    let mut agent = Agent {
        freezer: Freezer::new(handle, settings.hold.unclaimed, run, root),
        relay: if settings.listen.relay { Relay::new(run, &policy) } else { Relay::off() },
        policy,
        root: root.to_owned(),
    };
    tokio::select! {
        () = async { while stop.changed().await.is_ok() {} } => {}
        // there is no channel for us
        () = port::serve(settings.listen.guest_agent.clone(), &mut agent, root) => {}
    }
    agent.relay.end().await;
}
