//! Compiles `proto/` with a pure-Rust compiler, so that a build needs no protoc.

use std::{env, error::Error, fs, path::Path};

use prost::Message;

const PROTO: &str = "proto/holdstill/v1/holdstill.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO}");
    let set = protox::compile([PROTO], ["proto"])?;
    let out = env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    fs::write(Path::new(&out).join("descriptor.binpb"), set.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(set)?;
    Ok(())
}
