//! What a process's container is called, from its control group. No container runtime is asked.

use std::path::Path;

/// As many digits of an id as people are shown.
const SHORT: usize = 12;

/// From the text of /proc/PID/cgroup; `None`: no container that this version knows.
pub(super) fn name(cgroup: &str) -> Option<String> {
    // `hierarchy:controllers:path`; the innermost group that names a container counts
    cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find_map(of_path)
}

fn of_path(path: &str) -> Option<String> {
    let parts: Vec<&str> = Path::new(path).iter().filter_map(|part| part.to_str()).collect();
    (0..parts.len()).rev().find_map(|at| {
        let part = parts[at];
        let unit = part.strip_suffix(".scope").or_else(|| part.strip_suffix(".service")).unwrap_or(part);
        // docker-ID.scope, libpod-ID.scope, cri-containerd-ID.scope, crio-ID; plain ID below docker/ or kubepods/
        let id = unit.rsplit(['-', ':']).next().unwrap_or(unit);
        if id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Some(id[..SHORT].to_owned());
        }
        let named = unit
            .strip_prefix("lxc.payload.")
            .or_else(|| unit.strip_prefix("systemd-nspawn@"))
            .or_else(|| unit.strip_prefix("machine-"))
            .or_else(|| (at > 0 && parts[at - 1] == "lxc").then_some(unit));
        named.map(|name| name.replace(r"\x2d", "-")).filter(|name| !name.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_called_what_its_runtime_calls_it() {
        const ID: &str = "4f2e9c31d0aa4f2e9c31d0aa4f2e9c31d0aa4f2e9c31d0aa4f2e9c31d0aa0000";
        let short = Some("4f2e9c31d0aa".to_owned());
        assert_eq!(name(&format!("0::/system.slice/docker-{ID}.scope\n")), short);
        assert_eq!(name(&format!("12:memory:/docker/{ID}\n0::/\n")), short);
        assert_eq!(name(&format!("0::/machine.slice/libpod-{ID}.scope/container\n")), short);
        assert_eq!(
            name(&format!("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope\n")),
            short,
            "not the pod"
        );
        assert_eq!(name("0::/lxc.payload.web1/system.slice/mariadb.service\n"), Some("web1".to_owned()));
        assert_eq!(name("3:cpu:/lxc/old\n"), Some("old".to_owned()));
        assert_eq!(name(r"0::/machine.slice/machine-db\x2d1.scope/payload"), Some("db-1".to_owned()));
        assert_eq!(name("0::/machine.slice/systemd-nspawn@db.service/payload\n"), Some("db".to_owned()));
        for none in
            ["0::/system.slice/mariadb.service\n", "0::/user.slice/user-0.slice/session-4.scope\n", "0::/\n", ""]
        {
            assert_eq!(name(none), None, "{none}");
        }
    }
}
