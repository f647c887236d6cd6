//! Compiles `proto/` with a pure-Rust compiler, so that a build needs no protoc.

use std::{env, error::Error, fs, path::Path};

use prost::Message;

const PROTO: &str = "proto/holdstill/v1/holdstill.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO}");
    // A megabyte of relocations, read once and then kept in memory by daemon and warden, becomes 30 KiB. The linker and the
    // loader of Debian 12 know them; an older linker says that it ignores the option.
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    let set = protox::compile([PROTO], ["proto"])?;
    let out = env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    fs::write(Path::new(&out).join("descriptor.binpb"), set.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(set)?;
    Ok(())
}
