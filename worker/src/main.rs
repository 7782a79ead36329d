//! `cappy-worker`: serves a coordinator, and online calls, with every device of this machine.

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use cappy_hub::HubSettings;
use cappy_plugin_host::{Registry, State};
use cappy_process::{directories, exit::Code, logging, settings, shutdown};
use cappy_worker::{
    Backends, Config, DEFAULT_CACHE_BYTES, DEFAULT_CHECKPOINT_INTERVAL, DEFAULT_INTERACTIVE_WAIT,
    DEFAULT_QUEUE, DEFAULT_SLOTS, MemoryBudget, StartError,
    endpoint::Key,
    host_name,
    supervisor::{self, Ended},
};
use clap::{Args, Parser, Subcommand};
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
#[command(name = "cappy-worker", version = cappy_process::VERSION, about = "Computes for a Cappy cluster")]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a coordinator with every device, one child process each
    Serve {
        #[command(flatten)]
        worker: WorkerArgs,
        /// Devices to use: `auto`, or a list such as `cpu` or `cuda:0,cuda:1`
        #[arg(long, env = "CAPPY_DEVICES", default_value = "auto", value_delimiter = ',')]
        devices: Vec<String>,
    },
    /// List the backend plugins, and why any was refused
    Plugins {
        #[command(flatten)]
        plugins: PluginArgs,
        /// Print one JSON object a line
        #[arg(long)]
        json: bool,
        /// A TOML file with these settings
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// One device, in this process
    #[command(hide = true)]
    RunDevice {
        #[command(flatten)]
        worker: WorkerArgs,
        #[arg(long)]
        device: String,
        /// Standard input is the supervisor's leash
        #[arg(long)]
        leashed: bool,
    },
}

#[derive(Args, Clone)]
struct PluginArgs {
    /// Directory of `libcappy_plugin_*` libraries [default: where this program is]
    #[arg(long, env = "CAPPY_PLUGIN_PATH", value_name = "DIR")]
    plugin_path: Option<PathBuf>,
    /// Folder with libtorch's libraries (torch/lib of an installed PyTorch), for the libtorch backend [default:
    /// libtorch/torch/lib in the plugins' directory or one above it]
    #[arg(long, env = "CAPPY_TORCH_LIB_DIR", value_name = "DIR")]
    torch_lib_dir: Option<PathBuf>,
}

impl PluginArgs {
    /// As a child process takes them.
    fn arguments(&self) -> Vec<OsString> {
        let mut all = vec!["--plugin-path".into(), plugin_path(self).into()];
        if let Some(dir) = &self.torch_lib_dir {
            all.extend(["--torch-lib-dir".into(), dir.into()]);
        }
        all
    }
}

#[derive(Args, Clone)]
struct WorkerArgs {
    /// Coordinator to serve; without one, only the inference service runs
    #[arg(long, env = "CAPPY_COORDINATOR", value_name = "URL", value_parser = coordinator_url)]
    coordinator: Option<String>,
    /// File with the token that the coordinator wants to see of a worker
    #[arg(long, env = "CAPPY_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificates (PEM) by which an https:// coordinator is trusted, beside the system's
    #[arg(long, env = "CAPPY_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    #[command(flatten)]
    plugins: PluginArgs,
    /// Number format where a job says `auto`
    #[arg(long, env = "CAPPY_DTYPE", default_value = "auto", value_parser = ["auto", "f32", "bf16", "int8"])]
    dtype: String,
    /// Shards that a device runs at once
    #[arg(long, env = "CAPPY_SLOTS", default_value_t = DEFAULT_SLOTS, value_parser = clap::value_parser!(u32).range(1..=64))]
    slots: u32,
    /// Where the inference service listens; further devices take the ports after it (port 0: the system chooses)
    #[arg(long, env = "CAPPY_INFERENCE_LISTEN", value_name = "ADDR", default_value_t = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0))]
    inference_listen: SocketAddr,
    /// Artifacts, checkpoints and scratch files [default: `worker` below the data directory]
    #[arg(long, env = "CAPPY_CACHE_DIR", value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Bytes of artifacts kept on disk
    #[arg(long, env = "CAPPY_CACHE_BYTES", default_value_t = DEFAULT_CACHE_BYTES)]
    cache_bytes: u64,
    /// Memory of each device for weights and training runs: bytes, or such as 12GiB or 50% [default: 75%]
    #[arg(long, env = "CAPPY_MEMORY_BUDGET", value_name = "AMOUNT")]
    memory_budget: Option<MemoryBudget>,
    /// Online calls that wait for each model, or are computed by it; more are turned away
    #[arg(long, env = "CAPPY_QUEUE", default_value_t = DEFAULT_QUEUE)]
    queue: usize,
    /// Seconds between two checkpoints of a training run; 0: after every update
    #[arg(long, env = "CAPPY_CHECKPOINT_INTERVAL", value_name = "SECONDS", default_value_t = DEFAULT_CHECKPOINT_INTERVAL.as_secs())]
    checkpoint_interval: u64,
    /// Milliseconds that an online call may wait behind bulk work of its model, beyond a single row of that
    #[arg(long, env = "CAPPY_INTERACTIVE_WAIT", value_name = "MS", default_value_t = DEFAULT_INTERACTIVE_WAIT.as_millis() as u64)]
    interactive_wait: u64,
    /// Hosts of OpenAI-compatible endpoints that may be asked, with OPENAI_API_KEY where it is set: `api.openai.com`,
    /// `127.0.0.1:8000`, or `*` [default: none]
    #[arg(long, env = "CAPPY_ENDPOINT_HOSTS", value_name = "HOST", value_delimiter = ',')]
    endpoint_hosts: Vec<String>,
    /// Address by which the other workers of a shard that several compute reach this one [default: the one from which
    /// this worker reaches the coordinator]
    #[arg(long, env = "CAPPY_GROUP_HOST", value_name = "ADDRESS")]
    group_host: Option<String>,
    /// Name of this worker in lists [default: the host's]
    #[arg(long, env = "CAPPY_WORKER_NAME")]
    name: Option<String>,
    /// A TOML file with these settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Log errors only
    #[arg(short, long)]
    quiet: bool,
    /// Log more; twice: everything
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

fn coordinator_url(text: &str) -> Result<String, String> {
    let uri: tonic::transport::Uri = text.parse().map_err(|error| format!("not a URL: {error}"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(_)) => Ok(text.to_owned()),
        _ => Err("a URL such as http://127.0.0.1:50051 is needed".to_owned()),
    }
}

fn main() -> ExitCode {
    let program = settings::parse::<Program>();
    let result = match program.command {
        Command::Serve { worker, devices } => run(&worker, serve(worker.clone(), devices)),
        Command::RunDevice { worker, device, leashed } => {
            run(&worker, run_device(worker.clone(), device, leashed))
        }
        Command::Plugins { plugins, json, config: _ } => list_plugins(&plugins, json),
    };
    match result {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("error: {error:#}");
            // Without a backend for the device it stays so: a supervisor need not try again.
            let usage = matches!(
                error.downcast_ref(),
                Some(StartError::Plugins(_) | StartError::NoBackend { .. } | StartError::Idle)
            );
            ExitCode::from(if usage { Code::Usage } else { Code::Failed })
        }
    }
}

fn run(worker: &WorkerArgs, work: impl Future<Output = anyhow::Result<Code>>) -> anyhow::Result<Code> {
    // A daemon's log tells what happens; `-v` adds the details.
    logging::start(logging::Verbosity::from_flags(worker.quiet, worker.verbose + 1));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    // A computation that did not notice its cancellation must not keep the process.
    runtime.shutdown_background();
    result
}

async fn serve(worker: WorkerArgs, devices: Vec<String>) -> anyhow::Result<Code> {
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let devices = match devices.iter().any(|device| device == "auto") {
        true => find_devices(&program, &worker).await?,
        false => devices,
    };
    let (drain, kill) = (CancellationToken::new(), CancellationToken::new());
    tokio::spawn({
        let (drain, kill) = (drain.clone(), kill.clone());
        async move {
            shutdown::signal().await;
            tracing::info!("draining; a second signal ends at once");
            drain.cancel();
            shutdown::signal().await;
            kill.cancel();
        }
    });
    let command = {
        let devices = devices.clone();
        move |device: &str| {
            let index = devices.iter().position(|known| known == device).unwrap_or(0);
            child_command(&program, &worker, device, index)
        }
    };
    let ended = supervisor::supervise(devices, command, drain, kill).await;
    let unusable: Vec<String> = ended
        .into_iter()
        .filter_map(|end| match end {
            Ended::Done => None,
            Ended::Unusable(reason) => Some(reason),
        })
        .collect();
    if unusable.is_empty() { Ok(Code::Done) } else { bail!("{}", unusable.join("; ")) }
}

/// What engines read from the environment, unless the operator has set it: threads that wait for work sleep, because other
/// workers share the cores; a lost peer is told once, by us, without the engine's stack of C++ frames; it is for us to end
/// what waits for that peer, not for the engine to end this process; and GPUs are connected when their ranks meet, not in
/// the middle of the first exchange, where nobody looks whether it was cancelled.
const ENGINE_SETTINGS: [(&str, &str); 6] = [
    ("NCCL_RUNTIME_CONNECT", "0"),
    ("OMP_WAIT_POLICY", "passive"),
    ("TORCH_CPP_LOG_LEVEL", "FATAL"),
    ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0"),
    ("TORCH_NCCL_DUMP_ON_TIMEOUT", "0"),
    ("TORCH_NCCL_ENABLE_MONITORING", "0"),
];

fn child_command(program: &Path, worker: &WorkerArgs, device: &str, index: usize) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(program);
    let unset = ENGINE_SETTINGS.iter().filter(|(name, _)| std::env::var_os(name).is_none());
    command.envs(unset.copied());
    command.args(["run-device", "--leashed", "--device", device, "--dtype", &worker.dtype]);
    if let Some(coordinator) = &worker.coordinator {
        command.args(["--coordinator", coordinator]);
    }
    for (flag, file) in [("--token-file", &worker.token_file), ("--tls-ca", &worker.tls_ca)] {
        if let Some(file) = file {
            command.arg(flag).arg(file);
        }
    }
    let mut listen = worker.inference_listen;
    if listen.port() != 0 {
        listen.set_port(listen.port().saturating_add(index as u16));
    }
    let base_name = worker.name.clone().unwrap_or_else(host_name);
    let name = if device == "cpu" { base_name } else { format!("{base_name}/{device}") };
    command.args(worker.plugins.arguments());
    command.args(["--slots", &worker.slots.to_string(), "--queue", &worker.queue.to_string()]);
    command.args(["--inference-listen", &listen.to_string(), "--name", &name]);
    command.args(["--cache-bytes", &worker.cache_bytes.to_string()]);
    command.args(["--checkpoint-interval", &worker.checkpoint_interval.to_string()]);
    if !worker.endpoint_hosts.is_empty() {
        command.args(["--endpoint-hosts", &worker.endpoint_hosts.join(",")]);
    }
    if let Some(dir) = &worker.cache_dir {
        command.arg("--cache-dir").arg(dir);
    }
    if let Some(host) = &worker.group_host {
        command.args(["--group-host", host]);
    }
    command.args(["--interactive-wait", &worker.interactive_wait.to_string()]);
    if let Some(budget) = worker.memory_budget {
        command.args(["--memory-budget", &budget.to_string()]);
    }
    if let Some(config) = &worker.config {
        command.arg("--config").arg(config);
    }
    if worker.quiet {
        command.arg("--quiet");
    }
    command.args(std::iter::repeat_n("--verbose", worker.verbose.into()));
    command
}

/// The devices that the plugins see: every accelerator, else the CPU. Asked of a child, since a plugin that crashes
/// must not take the supervisor along.
async fn find_devices(program: &Path, worker: &WorkerArgs) -> anyhow::Result<Vec<String>> {
    let output = tokio::process::Command::new(program)
        .args(["plugins", "--json"])
        .args(worker.plugins.arguments())
        .stderr(std::process::Stdio::inherit())
        .output()
        .await
        .context("cannot look for devices")?;
    let mut devices: Vec<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|entry| entry.get("devices")?.as_array().cloned())
        .flatten()
        .filter_map(|device| Some(device.as_str()?.to_owned()))
        .collect();
    devices.sort();
    devices.dedup();
    if devices.iter().any(|device| device != "cpu") {
        devices.retain(|device| device != "cpu");
    }
    if devices.is_empty() {
        devices.push("cpu".to_owned());
    }
    Ok(devices)
}

async fn run_device(worker: WorkerArgs, device: String, leashed: bool) -> anyhow::Result<Code> {
    let cache_dir = match worker.cache_dir.clone() {
        Some(dir) => dir,
        None => {
            directories::default_data_dir().context("no home directory: give --cache-dir")?.join("worker")
        }
    };
    let hub = HubSettings::from_env().context("cannot find the model cache")?;
    let mut config = Config::new(Backends::PluginPath(plugin_path(&worker.plugins)), cache_dir, hub);
    config.torch_lib_dir = worker.plugins.torch_lib_dir;
    config.coordinator = worker.coordinator;
    let read = |flag: &str, path: &Path| {
        std::fs::read(path).with_context(|| format!("cannot read {flag} `{}`", path.display()))
    };
    if let Some(path) = &worker.token_file {
        let text = String::from_utf8(read("--token-file", path)?).unwrap_or_default();
        let token = cappy_worker::coordinator::parse_token(&text);
        config.token =
            Some(token.map_err(|error| anyhow::anyhow!("--token-file `{}`: {error}", path.display()))?);
    }
    config.tls_ca = worker.tls_ca.as_ref().map(|path| read("--tls-ca", path)).transpose()?;
    config.device = device;
    config.dtype = worker.dtype;
    config.slots = worker.slots;
    config.group_host = worker.group_host;
    config.previous_end = std::env::var(supervisor::PREVIOUS_END).unwrap_or_default();
    config.inference_listen = Some(worker.inference_listen);
    config.cache_bytes = worker.cache_bytes;
    config.queue = worker.queue;
    config.checkpoint_interval = Duration::from_secs(worker.checkpoint_interval);
    config.interactive_wait = Duration::from_millis(worker.interactive_wait);
    config.memory = worker.memory_budget.unwrap_or_default();
    if let Some(name) = worker.name {
        config.name = name;
    }
    config.endpoint.hosts.named = worker.endpoint_hosts;
    config.endpoint.key = std::env::var("OPENAI_API_KEY").ok().as_deref().and_then(Key::new);
    let stop = CancellationToken::new();
    let handle = cappy_worker::start(config, stop.clone()).await?;
    if let Some(address) = handle.inference_addr() {
        tracing::info!(%address, "the inference service listens");
    }
    let drain = handle.drain_token();
    if leashed {
        tokio::spawn(supervisor::leash(drain.clone(), stop.clone()));
    }
    tokio::spawn(async move {
        shutdown::signal().await;
        drain.cancel();
        shutdown::signal().await;
        stop.cancel();
    });
    handle.stopped().await?;
    Ok(Code::Done)
}

fn plugin_path(plugins: &PluginArgs) -> PathBuf {
    plugins.plugin_path.clone().unwrap_or_else(|| {
        let program = std::env::current_exe().ok();
        program.as_deref().and_then(Path::parent).map_or_else(|| PathBuf::from("."), Path::to_owned)
    })
}

fn list_plugins(plugins: &PluginArgs, json: bool) -> anyhow::Result<Code> {
    let dir = plugin_path(plugins);
    let mut registry = Registry::default();
    registry.set_torch_lib_dir(plugins.torch_lib_dir.clone());
    registry.discover(&dir)?;
    registry.open_all();
    if registry.entries().is_empty() && !json {
        println!("no plugins in {}", dir.display());
    }
    for entry in registry.entries() {
        let version = entry.version().map(|version| format!(" {version}")).unwrap_or_default();
        match entry.state() {
            State::Ready { descriptor, .. } if json => println!("{}", serde_json::to_string(descriptor)?),
            State::Ready { descriptor, .. } => println!(
                "{}{version} ({}): devices {}; dtypes {}; scorers {}; generators {}; {}",
                descriptor.name,
                descriptor.engine_version,
                descriptor.devices.join(", "),
                descriptor.dtypes.join(", "),
                descriptor.scorer_architectures.join(", "),
                descriptor.generator_architectures.join(", "),
                descriptor.features.join(", "),
            ),
            _ => {
                let reason = entry.reason().unwrap_or_else(|| "not opened".to_owned());
                if json {
                    println!("{}", serde_json::json!({ "name": entry.name(), "refused": reason }));
                } else {
                    println!("{}{version} refused: {reason}", entry.name());
                }
            }
        }
    }
    Ok(Code::Done)
}
