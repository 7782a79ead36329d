//! What a worker needs to know; every default is named here.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use cappy_hub::HubSettings;
use cappy_plugin_abi::Backend;

use crate::{compute::Budgets, endpoint::EndpointSettings, memory::MemoryBudget};

/// Shards that run at once on a CPU: while one computes, the other tokenizes, reads or writes.
pub const DEFAULT_SLOTS: u32 = 2;

/// Bytes of artifacts kept on disk.
pub const DEFAULT_CACHE_BYTES: u64 = 20 * 1024 * 1024 * 1024;

/// Online calls that wait for each model, or are computed by it.
pub const DEFAULT_QUEUE: usize = 128;

/// How long an interactive call may wait behind bulk work of its model, beyond a single row of that.
pub const DEFAULT_INTERACTIVE_WAIT: Duration = Duration::from_millis(20);

/// Between two checkpoints of a training run.
pub const DEFAULT_CHECKPOINT_INTERVAL: Duration = Duration::from_secs(120);

/// Where backends come from.
#[derive(Clone)]
pub enum Backends {
    /// Linked into this program, in order of preference (`cappy_plugin_host::builtin` makes them).
    Builtin(Vec<Arc<dyn Backend>>),
    /// Libraries of a directory.
    PluginPath(PathBuf),
}

/// A worker.
#[derive(Clone)]
pub struct Config {
    /// `http://host:port`; `None`: only the inference service runs.
    pub coordinator: Option<String>,
    /// What the coordinator wants to see of a worker.
    pub token: Option<String>,
    /// Certificates (PEM) by which an `https://` coordinator is trusted, beside the system's.
    pub tls_ca: Option<Vec<u8>>,
    /// For lists: the host, by default.
    pub name: String,
    /// What computes.
    pub backends: Backends,
    /// Directory of further libraries, beside those linked in.
    pub plugin_path: Option<PathBuf>,
    /// How the worker's process before this one died; empty: it did not.
    pub previous_end: String,
    /// Address by which the other ranks of a group reach this worker; `None`: the one from which it reaches the
    /// coordinator.
    pub group_host: Option<String>,
    /// Folder with libtorch's libraries, for plugins that need it; `None`: found near the plugins.
    pub torch_lib_dir: Option<PathBuf>,
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// `auto`, `f32`, `bf16`, `int8`: where a job says `auto`.
    pub dtype: String,
    /// Shards at once.
    pub slots: u32,
    /// Where the inference service listens; `None`: nowhere.
    pub inference_listen: Option<SocketAddr>,
    /// Artifacts, checkpoints, scratch files.
    pub cache_dir: PathBuf,
    /// Of artifacts on disk.
    pub cache_bytes: u64,
    /// Of weights in the device's memory, and of training runs.
    pub memory: MemoryBudget,
    /// Online calls that wait for each model, or are computed by it; more are turned away.
    pub queue: usize,
    /// How long an interactive call may wait behind bulk work of its model, beyond a single row of that.
    pub interactive_wait: Duration,
    /// Between two checkpoints of a training run.
    pub checkpoint_interval: Duration,
    /// Sizes of batches; `None`: those for the device.
    pub budgets: Option<Budgets>,
    /// Where models are found.
    pub hub: HubSettings,
    /// How generators elsewhere are asked.
    pub endpoint: EndpointSettings,
}

impl Config {
    /// A worker on the CPU with every default.
    pub fn new(backends: Backends, cache_dir: PathBuf, hub: HubSettings) -> Self {
        Self {
            coordinator: None,
            token: None,
            tls_ca: None,
            name: host_name(),
            backends,
            plugin_path: None,
            previous_end: String::new(),
            group_host: None,
            torch_lib_dir: None,
            device: "cpu".to_owned(),
            dtype: "auto".to_owned(),
            slots: DEFAULT_SLOTS,
            inference_listen: None,
            cache_dir,
            cache_bytes: DEFAULT_CACHE_BYTES,
            memory: MemoryBudget::default(),
            queue: DEFAULT_QUEUE,
            interactive_wait: DEFAULT_INTERACTIVE_WAIT,
            checkpoint_interval: DEFAULT_CHECKPOINT_INTERVAL,
            budgets: None,
            hub,
            endpoint: EndpointSettings::default(),
        }
    }
}

/// The machine's name, as far as it has one.
pub fn host_name() -> String {
    let read = |path| fs::read_to_string(path).ok();
    read("/proc/sys/kernel/hostname")
        .or_else(|| read("/etc/hostname"))
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "worker".to_owned())
}
