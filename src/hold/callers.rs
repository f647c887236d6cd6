//! Who can ask this agent to hold, as `check` says it: for people who are setting a machine up, and for those who wonder
//! why no snapshot ever asked. Plain data in, problems out; never a refusal, because a hold can always be asked for here.

use std::path::{Path, PathBuf};

use super::plan::problem;
use crate::{
    config::{GuestAgent, Listen},
    guest::{
        agent_channel::{AgentChannel, Owner},
        platform::Platform,
    },
    proto::{self, Severity},
};

/// What there is to say. Nothing if the administrator switched the guest-agent channel off: that is decided.
pub fn problems(listen: &Listen, channel: &AgentChannel, platform: Platform) -> Vec<proto::Problem> {
    let mut problems = Vec::new();
    let ways = ways(listen, channel);
    if !ways.is_empty() {
        let message = format!("the hypervisor can ask this agent to hold: {}", ways.join(", and "));
        problems.push(problem(Severity::Note, "CALLERS", "", &message, ""));
    }
    if listen.guest_agent == GuestAgent::Off {
        return problems;
    }
    match (&channel.device, &channel.owner) {
        (_, Owner::Other { .. }) if through_qemu_ga(channel).is_some() => {}
        (_, Owner::Us) => problems.extend(unused_hooks(&channel.hooks)),
        (Some(_), Owner::Other { pid, name }) if ways.is_empty() => problems.push(owned(*pid, name, listen.relay)),
        (Some(device), Owner::Other { pid, name }) => {
            let message = format!(
                "a freeze sent to the guest-agent channel goes to {name} (pid {pid}), not to this agent: it holds no \
                 database, has no deadline and leaves no receipt"
            );
            let hint = "let the host ask one of the two: each refuses or breaks what the other has frozen";
            problems.push(problem(Severity::Note, "CHANNEL_OF_ANOTHER", &device.display().to_string(), &message, hint));
        }
        (Some(device), Owner::Nobody) if ways.is_empty() => {
            let device = device.display().to_string();
            let message =
                format!("nobody can ask this agent to hold: nobody listens on the guest-agent channel {device}");
            let hint = "`systemctl restart holdstill` takes it; the log says why it was not taken before";
            problems.push(problem(Severity::Warning, "NOBODY_CAN_ASK", &device, &message, hint));
        }
        (None, Owner::Nobody | Owner::Other { .. }) if ways.is_empty() => problems.extend(no_channel(platform)),
        (Some(_) | None, Owner::Nobody | Owner::Other { .. }) => {}
    }
    problems
}

/// The ways in from outside, as far as they are open. `[listen.tcp]` has no effect in this version.
fn ways(listen: &Listen, channel: &AgentChannel) -> Vec<String> {
    let agent = match (&listen.guest_agent, &channel.device) {
        (GuestAgent::Auto, Some(device)) if channel.owner == Owner::Us => {
            Some(format!("on the guest-agent channel {}", device.display()))
        }
        (GuestAgent::Auto, Some(_) | None) | (GuestAgent::Off, _) => None,
        // the channel itself, by name, and somebody was faster
        (GuestAgent::Path(path), Some(device)) if path == device && channel.owner != Owner::Us => None,
        (GuestAgent::Path(path), _) => Some(format!("in the guest agent's protocol on {}", path.display())),
        (GuestAgent::Vsock(port), _) => Some(format!("in the guest agent's protocol on vsock port {port}")),
    };
    let agent = agent.or_else(|| through_qemu_ga(channel));
    agent.into_iter().chain(listen.vsock.map(|port| format!("over gRPC on vsock port {port}"))).collect()
}

/// qemu-ga owns the channel, and its fsfreeze-hook is our adapter. That it was restarted since is not known.
fn through_qemu_ga(channel: &AgentChannel) -> Option<String> {
    match &channel.owner {
        Owner::Other { pid, name } if name == "qemu-ga" && channel.hooks.iter().any(|hook| is_our_adapter(hook)) => {
            Some(format!(
                "through qemu-ga (pid {pid}) and our adapter: qemu-ga freezes, databases and hooks are held here"
            ))
        }
        Owner::Other { .. } | Owner::Us | Owner::Nobody => None,
    }
}

/// By the name that `hooks install-adapter` gives it.
fn is_our_adapter(hook: &Path) -> bool {
    hook.file_name().is_some_and(|name| name == "holdstill-fsfreeze-hook")
}

/// The stock agent, or something else, answers in our place. A hook of qemu-ga's that freezes is no way out, see
/// docs/guest-agent.md.
fn owned(pid: i32, name: &str, relay: bool) -> proto::Problem {
    let message = format!(
        "nobody can ask this agent to hold: {name} (pid {pid}) owns the guest-agent channel, and the hypervisor's freeze \
         goes there"
    );
    let take = match (name, relay) {
        ("qemu-ga", true) => {
            "`systemctl mask --now qemu-guest-agent && systemctl restart holdstill`: holdstill takes the channel and passes \
             on to qemu-ga all that is not about freezing, so nothing else changes"
        }
        ("qemu-ga", false) => {
            "remove `relay = false` from [listen], then `systemctl mask --now qemu-guest-agent && systemctl restart \
             holdstill`: holdstill takes the channel and passes on to qemu-ga all that is not about freezing"
        }
        (_, true | false) => "end it for good, then `systemctl restart holdstill` takes the channel",
    };
    let keep = match name {
        "qemu-ga" => "; or let qemu-ga freeze and hold the rest around it: `holdstill hooks install-adapter qemu-ga`",
        _ => "",
    };
    let hint = format!("{take}; or set `vsock` in [listen] and let the host ask there, not {name}{keep}");
    problem(Severity::Warning, "NOBODY_CAN_ASK", "", &message, &hint)
}

/// Somebody relied on them while qemu-ga had the channel.
fn unused_hooks(hooks: &[PathBuf]) -> Option<proto::Problem> {
    let hooks: Vec<&PathBuf> = hooks.iter().filter(|hook| !is_our_adapter(hook)).collect();
    let first = hooks.first()?;
    let names: Vec<String> = hooks.iter().map(|hook| hook.display().to_string()).collect();
    let message = format!("qemu-ga's fsfreeze-hook does not run when this agent holds: {}", names.join(", "));
    let hint = match first.parent().filter(|directory| directory.ends_with("fsfreeze-hook.d")) {
        Some(directory) => {
            format!("`holdstill hooks add --convention qemu {}` runs them where they are", directory.display())
        }
        None => {
            format!("what is still needed is called in the same way here: `holdstill hooks add {}`", first.display())
        }
    };
    Some(problem(Severity::Warning, "QEMU_GA_HOOK_UNUSED", "", &message, &hint))
}

/// Only where the host's side could add one.
fn no_channel(platform: Platform) -> Option<proto::Problem> {
    let hint = platform.known().guest_agent_channel.as_deref()?;
    let message = "only local callers can ask this agent to hold: this machine has no guest-agent channel";
    Some(problem(Severity::Note, "NO_GUEST_AGENT_CHANNEL", "", message, hint))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn on(name: &str) -> Platform {
        Platform::named(name).unwrap()
    }
    use crate::config::Settings;

    fn listen(guest_agent: GuestAgent, vsock: Option<u32>) -> Listen {
        Listen { guest_agent, vsock, ..Settings::default().listen }
    }

    fn channel(owner: Owner) -> AgentChannel {
        let device = Some("/dev/virtio-ports/org.qemu.guest_agent.0".into());
        AgentChannel { device, owner, stock: Some("/usr/sbin/qemu-ga".into()), hooks: Vec::new() }
    }

    fn none() -> AgentChannel {
        AgentChannel { device: None, owner: Owner::Nobody, stock: None, hooks: Vec::new() }
    }

    fn qemu_ga() -> Owner {
        Owner::Other { pid: 612, name: "qemu-ga".into() }
    }

    /// Severity and code of each.
    fn said(listen: &Listen, channel: &AgentChannel, platform: Platform) -> Vec<(Severity, String)> {
        problems(listen, channel, platform).into_iter().map(|p| (p.severity(), p.code)).collect()
    }

    #[test]
    fn while_qemu_ga_owns_the_channel_nobody_can_ask_and_the_way_out_is_a_command() {
        let found = problems(&listen(GuestAgent::Auto, None), &channel(qemu_ga()), on("kvm"));
        let [problem] = &found[..] else { panic!("{found:?}") };
        assert_eq!((problem.severity(), problem.code.as_str()), (Severity::Warning, "NOBODY_CAN_ASK"));
        assert_eq!(
            problem.message,
            "nobody can ask this agent to hold: qemu-ga (pid 612) owns the guest-agent channel, and the hypervisor's \
             freeze goes there"
        );
        assert!(problem.hint.starts_with("`systemctl mask --now qemu-guest-agent && systemctl restart holdstill`"));
        assert!(problem.hint.ends_with("`holdstill hooks install-adapter qemu-ga`"), "{}", problem.hint);
    }

    #[test]
    fn without_the_relay_the_hint_says_to_switch_it_on_first_and_another_agent_is_not_called_qemu_ga() {
        let without = Listen { relay: false, ..listen(GuestAgent::Auto, None) };
        assert!(problems(&without, &channel(qemu_ga()), on("kvm"))[0].hint.starts_with("remove `relay = false`"));
        let other = channel(Owner::Other { pid: 7, name: "their agent".into() });
        let found = problems(&listen(GuestAgent::Auto, None), &other, on("kvm"));
        assert!(found[0].message.contains("their agent (pid 7)") && found[0].hint.starts_with("end it for good"));
    }

    #[test]
    fn who_can_ask_is_a_note() {
        let found = problems(&listen(GuestAgent::Auto, Some(7411)), &channel(Owner::Us), on("kvm"));
        let [problem] = &found[..] else { panic!("{found:?}") };
        assert_eq!(problem.severity(), Severity::Note);
        assert_eq!(
            problem.message,
            "the hypervisor can ask this agent to hold: on the guest-agent channel \
             /dev/virtio-ports/org.qemu.guest_agent.0, and over gRPC on vsock port 7411"
        );
    }

    #[test]
    fn every_other_arrangement_has_its_word_or_none() {
        use Severity::{Note, Warning};
        let auto = || listen(GuestAgent::Auto, None);
        let callers = (Note, "CALLERS".to_owned());
        let nobody = (Warning, "NOBODY_CAN_ASK".to_owned());
        let missing = (Note, "NO_GUEST_AGENT_CHANNEL".to_owned());
        let elsewhere = (Note, "CHANNEL_OF_ANOTHER".to_owned());
        for (case, listen, channel, platform, expected) in [
            ("nobody reads it", auto(), channel(Owner::Nobody), on("kvm"), vec![nobody.clone()]),
            ("no channel, and the host could add one", auto(), none(), on("kvm"), vec![missing.clone()]),
            ("no channel on OpenStack", auto(), none(), on("openstack"), vec![missing]),
            ("no channel on a cloud without", auto(), none(), on("aws"), vec![]),
            ("no virtual machine", auto(), none(), on("unknown"), vec![]),
            ("vsock instead", listen(GuestAgent::Auto, Some(1)), none(), on("kvm"), vec![callers.clone()]),
            (
                "vsock beside qemu-ga",
                listen(GuestAgent::Auto, Some(1)),
                channel(qemu_ga()),
                on("kvm"),
                vec![callers.clone(), elsewhere.clone()],
            ),
            (
                "another port beside qemu-ga",
                listen(GuestAgent::Path("/dev/ttyS1".into()), None),
                channel(qemu_ga()),
                on("kvm"),
                vec![callers.clone(), elsewhere],
            ),
            (
                "the channel by its name, and qemu-ga was faster",
                listen(GuestAgent::Path("/dev/virtio-ports/org.qemu.guest_agent.0".into()), None),
                channel(qemu_ga()),
                on("kvm"),
                vec![nobody.clone()],
            ),
            (
                "the channel over vsock",
                listen(GuestAgent::Vsock(1234), None),
                none(),
                on("unknown"),
                vec![callers.clone()],
            ),
            ("off", listen(GuestAgent::Off, None), channel(qemu_ga()), on("kvm"), vec![]),
            ("off, and vsock", listen(GuestAgent::Off, Some(1)), channel(qemu_ga()), on("kvm"), vec![callers]),
        ] {
            assert_eq!(said(&listen, &channel, platform), expected, "{case}");
        }
    }

    #[test]
    fn hooks_that_qemu_ga_ran_and_that_run_no_more_are_named_with_the_command_that_adds_them() {
        let mut ours = channel(Owner::Us);
        ours.hooks = vec!["/etc/qemu/fsfreeze-hook.d/mysql-flush.sh".into()];
        let found = problems(&listen(GuestAgent::Auto, None), &ours, on("kvm"));
        assert_eq!((found[1].severity(), found[1].code.as_str()), (Severity::Warning, "QEMU_GA_HOOK_UNUSED"));
        assert!(found[1].hint.contains("hooks add --convention qemu /etc/qemu/fsfreeze-hook.d`"));
        ours.owner = qemu_ga();
        assert_eq!(problems(&listen(GuestAgent::Auto, Some(1)), &ours, on("kvm")).len(), 2, "there they run");
    }

    #[test]
    fn qemu_ga_with_our_adapter_for_a_hook_is_a_way_in_and_without_qemu_ga_that_hook_is_no_loss() {
        let mut channel = channel(qemu_ga());
        channel.hooks = vec!["/etc/qemu/holdstill-fsfreeze-hook".into()];
        let found = problems(&listen(GuestAgent::Auto, None), &channel, on("kvm"));
        let [problem] = &found[..] else { panic!("{found:?}") };
        assert_eq!((problem.severity(), problem.code.as_str()), (Severity::Note, "CALLERS"));
        assert!(problem.message.contains("through qemu-ga (pid 612)"), "{}", problem.message);
        channel.owner = Owner::Us;
        assert_eq!(said(&listen(GuestAgent::Auto, None), &channel, on("kvm")).len(), 1);
    }

    proptest! {
        /// The administrator's word is the last: what was switched off is not complained about.
        #[test]
        fn nobody_is_warned_about_a_channel_that_is_switched_off(vsock: bool, us: bool, there: bool) {
            let mut channel = channel(if us { Owner::Us } else { qemu_ga() });
            channel.device = channel.device.filter(|_| there);
            let said = said(&listen(GuestAgent::Off, vsock.then_some(1)), &channel, on("kvm"));
            prop_assert!(said.iter().all(|(severity, _)| *severity == Severity::Note), "{:?}", said);
        }
    }
}
