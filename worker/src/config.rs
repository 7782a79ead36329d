//! What a worker needs to know; every default is named here.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use cappy_hub::HubSettings;
use cappy_plugin_abi::Backend;

use crate::{compute::Budgets, endpoint::EndpointSettings};

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

/// Share of the machine's memory for weights and training runs, in percent.
pub const DEFAULT_MEMORY_PERCENT: u64 = 75;

/// Where the machine does not say how much memory it has.
const FALLBACK_MEMORY_BYTES: u64 = 8 * 1024 * 1024 * 1024;

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
    /// Of weights in memory, and of training runs.
    pub memory_bytes: u64,
    /// Online calls that wait for each model, or are computed by it; more are turned away.
    pub queue: usize,
    /// How long an interactive call may wait behind bulk work of its model, beyond a single row of that.
    pub interactive_wait: Duration,
    /// Between two checkpoints of a training run.
    pub checkpoint_interval: Duration,
    /// Sizes of batches.
    pub budgets: Budgets,
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
            memory_bytes: machine_memory() / 100 * DEFAULT_MEMORY_PERCENT,
            queue: DEFAULT_QUEUE,
            interactive_wait: DEFAULT_INTERACTIVE_WAIT,
            checkpoint_interval: DEFAULT_CHECKPOINT_INTERVAL,
            budgets: Budgets::default(),
            hub,
            endpoint: EndpointSettings::default(),
        }
    }
}

/// A memory budget as a person writes it: `12GiB`, `800MB`, `50%` of the machine's memory, or bytes.
///
/// # Errors
/// Says what is expected.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no amount of memory: give bytes, or such as 12GiB, 800MB or 50%");
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number: f64 = digits.trim().parse().map_err(|_| wrong())?;
    let unit = match text[digits.len()..].trim() {
        "" | "B" => 1.0,
        "K" | "KiB" => 1024.0,
        "M" | "MiB" => 1024.0 * 1024.0,
        "G" | "GiB" => 1024.0 * 1024.0 * 1024.0,
        "T" | "TiB" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        "%" if number <= 100.0 => machine_memory() as f64 / 100.0,
        _ => return Err(wrong()),
    };
    let bytes = number * unit;
    if (1.0..=u64::MAX as f64).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
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

/// Bytes of memory: the machine's, or less where a control group says so.
pub fn machine_memory() -> u64 {
    let total = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    });
    let group = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
    match (total, group) {
        (Some(total), Some(group)) => total.min(group),
        (Some(bytes), None) | (None, Some(bytes)) => bytes,
        (None, None) => FALLBACK_MEMORY_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_memory_are_read_as_people_write_them() {
        let gib = 1_u64 << 30;
        for (text, bytes) in [
            ("12GiB", 12 * gib),
            ("1.5 G", gib * 3 / 2),
            ("800MB", 800_000_000),
            ("4096", 4096),
            ("100%", machine_memory()),
        ] {
            assert_eq!(parse_memory(text), Ok(bytes), "{text}");
        }
        for text in ["", "much", "-1GiB", "0", "120%", "3 stones", "%"] {
            assert!(parse_memory(text).unwrap_err().contains("no amount of memory"), "{text}");
        }
    }
}
