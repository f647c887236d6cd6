//! Compiles `proto/` with a pure-Rust compiler, so that a build needs no protoc, and lists the platforms that are known.

use std::{
    env,
    error::Error,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use prost::Message;

const PROTO: &str = "proto/holdstill/v1/holdstill.proto";
const PLATFORMS: &str = "src/guest/platform/known";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO}");
    // A megabyte of relocations, read once and then kept in memory by daemon and warden, becomes 30 KiB. The linker and the
    // loader of Debian 12 know them; an older linker says that it ignores the option.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    let set = protox::compile([PROTO], ["proto"])?;
    let out = env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    fs::write(Path::new(&out).join("descriptor.binpb"), set.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(set)?;
    fs::write(Path::new(&out).join("platforms.rs"), platforms()?)?;
    Ok(())
}

/// `FILES`: what is known of each platform, so that a new one needs no Rust. What is in them is checked by a test.
fn platforms() -> Result<String, Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PLATFORMS}");
    let mut paths: Vec<PathBuf> = fs::read_dir(PLATFORMS)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    let mut text = "static FILES: &[(&str, &str)] = &[\n".to_string();
    for path in paths {
        println!("cargo::rerun-if-changed={}", path.display());
        let name = path.file_stem().and_then(|name| name.to_str()).ok_or("a platform's file name is not text")?;
        let path = fs::canonicalize(&path)?;
        writeln!(text, "    ({name:?}, include_str!({path:?})),")?;
    }
    text.push_str("];\n");
    Ok(text)
}
