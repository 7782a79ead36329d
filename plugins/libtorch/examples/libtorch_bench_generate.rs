//! This backend's side of `cargo xtask bench generate`: see [`cappy_plugin_suite::bench`].

fn main() -> Result<(), Box<dyn std::error::Error>> {
    cappy_plugin_suite::bench::generate(&cappy_plugin_libtorch::LibtorchBackend)
}
