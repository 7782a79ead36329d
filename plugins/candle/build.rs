//! With the feature `cuda`: compiles this plugin's own kernels with `nvcc`.

use std::path::PathBuf;
use std::process::Command;
use std::{env, process};

const SOURCE: &str = "src/kernels/cuda/attention.cu";

/// The oldest GPUs that compute in bf16. The driver compiles PTX for the newer ones.
const GENERATION: &str = "-arch=compute_80";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        compile();
    }
}

fn compile() {
    let nvcc =
        env::var_os("CUDA_HOME").map_or_else(|| "nvcc".into(), |home| PathBuf::from(home).join("bin/nvcc"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("attention.ptx");
    let mut command = Command::new(&nvcc);
    command.args(["-ptx", GENERATION, "-std=c++17", "-O3", "-o"]).arg(out).arg(SOURCE);
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => stop(&format!("{} ended with {status}", nvcc.display())),
        Err(error) => {
            stop(&format!("{} does not start ({error}): set CUDA_HOME to the CUDA toolkit", nvcc.display()))
        }
    }
}

fn stop(reason: &str) -> ! {
    println!("cargo:warning={reason}");
    process::exit(1)
}
