//! Where container runtimes and their like keep everything: by their documentation, or by their own configuration.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{super::Dev, Aim, Level, Place, Risk, Walk, inside, text};

/// One program's root.
struct Known {
    name: &'static str,
    usual: &'static str,
    /// what people move away alone
    parts: &'static [&'static str],
}

const fn known(name: &'static str, usual: &'static str, parts: &'static [&'static str]) -> Known {
    Known { name, usual, parts }
}

const KNOWN: &[Known] = &[
    known("docker", "/var/lib/docker", &["volumes", "containers", "overlay2"]),
    known(
        "containerd",
        "/var/lib/containerd",
        &["io.containerd.snapshotter.v1.overlayfs", "io.containerd.content.v1.content"],
    ),
    known("containers", "/var/lib/containers/storage", &["volumes", "overlay"]),
    known("kubelet", "/var/lib/kubelet", &["pods"]),
    known("rancher", "/var/lib/rancher", &["k3s", "rke2"]),
    known("k0s", "/var/lib/k0s", &[]),
    known("microk8s", "/var/snap/microk8s/common", &[]),
    known("local volumes of Kubernetes", "/opt/local-path-provisioner", &[]),
    known("libvirt", "/var/lib/libvirt/images", &[]),
    known("machines of systemd", "/var/lib/machines", &[]),
    known("lxd", "/var/snap/lxd/common/lxd", &["storage-pools"]),
    known("lxd", "/var/lib/lxd", &["storage-pools"]),
    known("incus", "/var/lib/incus", &["storage-pools"]),
    known("lxc", "/var/lib/lxc", &[]),
    known("snap", "/var/snap", &[]),
    known("flatpak", "/var/lib/flatpak", &[]),
];

/// Pools and pods beyond this are counted no more.
const MOST_ENTRIES: usize = 512;

/// Those that lie on a file system in question, whole or in part.
pub(super) fn roots(root: &Path, walk: &Walk<'_>, aim: &Aim<'_>) -> Vec<(Dev, Risk)> {
    let mut risks = Vec::new();
    for known in KNOWN {
        let configured = configured(root, walk, known.name);
        let at = configured.as_ref().map_or(Path::new(known.usual), |(path, _)| path);
        let Some(place) = walk.to(at) else { continue };
        if aim.at_state(place.dev) {
            let how = match &configured {
                Some((_, file)) => format!(", as {file} has it"),
                None if place.path != at => format!(", reached as {}", at.display()),
                None => String::new(),
            };
            let message =
                format!("the root of {} is {}{how}{}", known.name, place.path.display(), pods(root, known, &place));
            risks.push((place.dev, risk(known.name, &place.path, message)));
            continue;
        }
        for part in known.parts.iter().map(|part| place.path.join(part)) {
            let Some(found) = walk.to(&part) else { continue };
            if aim.at_state(found.dev) {
                let message = format!("{} of {} is {}", part.display(), known.name, found.path.display());
                risks.push((found.dev, risk(known.name, &found.path, message)));
            } else if part.ends_with("storage-pools") {
                risks.extend(pools(root, walk, aim, known, &found));
            }
        }
    }
    for path in libvirt_pools(root, walk) {
        if let Some(place) = walk.to(&path).filter(|place| aim.at_state(place.dev)) {
            let message = format!("a pool of libvirt is {}", place.path.display());
            risks.push((place.dev, risk("libvirt", &place.path, message)));
        }
    }
    risks
}

fn risk(name: &str, path: &Path, message: String) -> Risk {
    Risk { level: Level::State, subject: name.to_owned(), path: path.to_owned(), message }
}

/// The root that a program's own configuration names, and the file that does.
fn configured(root: &Path, walk: &Walk<'_>, name: &str) -> Option<(PathBuf, &'static str)> {
    let read = |file: &'static str| Some((text(&inside(root, &walk.to(Path::new(file))?.path))?, file));
    let (value, file) = match name {
        "docker" => {
            let (text, file) = read("/etc/docker/daemon.json")?;
            let json: serde_json::Value = serde_json::from_str(&text).ok()?;
            let value = json.get("data-root").or_else(|| json.get("graph"))?;
            (value.as_str()?.to_owned(), file)
        }
        "containerd" => {
            let (text, file) = read("/etc/containerd/config.toml")?;
            let table: toml::Table = text.parse().ok()?;
            (table.get("root")?.as_str()?.to_owned(), file)
        }
        "containers" => {
            let files = ["/etc/containers/storage.conf", "/usr/share/containers/storage.conf"];
            let (text, file) = files.into_iter().find_map(read)?;
            let table: toml::Table = text.parse().ok()?;
            (table.get("storage")?.get("graphroot")?.as_str()?.to_owned(), file)
        }
        _ => return None,
    };
    value.starts_with('/').then(|| (PathBuf::from(value), file))
}

/// Kubernetes' `emptyDir` volumes lie below the kubelet's root, whatever pods make of their name.
fn pods(root: &Path, known: &Known, place: &Place) -> String {
    if known.name != "kubelet" {
        return String::new();
    }
    let list = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().take(MOST_ENTRIES);
    let volumes = |pod: fs::DirEntry| list(&pod.path().join("volumes/kubernetes.io~empty-dir")).count();
    match list(&inside(root, &place.path.join("pods"))).map(volumes).sum::<usize>() {
        0 => String::new(),
        1 => ", with 1 emptyDir volume".to_owned(),
        count => format!(", with {count} emptyDir volumes"),
    }
}

/// LXD and Incus mount or link each pool where it should be.
fn pools(root: &Path, walk: &Walk<'_>, aim: &Aim<'_>, known: &Known, place: &Place) -> Vec<(Dev, Risk)> {
    let entries = fs::read_dir(inside(root, &place.path)).into_iter().flatten().flatten().take(MOST_ENTRIES);
    let pool = |entry: fs::DirEntry| {
        let found = walk.to(&place.path.join(entry.file_name())).filter(|found| aim.at_state(found.dev))?;
        let message = format!("the pool {} of {} is {}", entry.file_name().display(), known.name, found.path.display());
        Some((found.dev, risk(known.name, &found.path, message)))
    };
    entries.filter_map(pool).collect()
}

/// Directories that pools of libvirt are made of: `<path>` of each (formatstorage of libvirt).
fn libvirt_pools(root: &Path, walk: &Walk<'_>) -> Vec<PathBuf> {
    let Some(place) = walk.to(Path::new("/etc/libvirt/storage")) else { return Vec::new() };
    let entries = fs::read_dir(inside(root, &place.path)).into_iter().flatten().flatten().take(MOST_ENTRIES);
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    let path = |entry: fs::DirEntry| {
        let text = text(&entry.path()).filter(|_| entry.path().extension().is_some_and(|e| e == "xml"))?;
        let (_, rest) = text.split_once("<path>")?;
        Some(PathBuf::from(rest.split_once("</path>")?.0.trim()))
    };
    files.filter_map(path).filter(|path| path != Path::new("/var/lib/libvirt/images")).collect()
}
