//! Compiles the `.proto` files with `protox`, so that no system protoc is needed.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 6] = [
    "cappy/v1/artifact.proto",
    "cappy/v1/cluster.proto",
    "cappy/v1/inference.proto",
    "cappy/v1/job.proto",
    "cappy/v1/settings.proto",
    "cappy/v1/worker.proto",
];

fn main() {
    let descriptors = protox::compile(FILES, ["."]).expect("the .proto files compile");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec()).expect("OUT_DIR is writable");
    tonic_prost_build::configure()
        .bytes(".cappy.v1.UploadRequest.chunk")
        .bytes(".cappy.v1.DownloadResponse.chunk")
        .compile_fds(descriptors)
        .expect("code generation succeeds");
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
}
