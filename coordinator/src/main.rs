//! `cappy-coordinator serve`.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use cappy_coordinator::{Config, config, start};
use cappy_process::{exit::Code, logging, settings, shutdown};
use clap::{Args, Parser, Subcommand};
use tokio_util::sync::CancellationToken;

/// Plans jobs, leases their shards to workers, keeps state and artifacts.
///
/// Every flag is also an environment variable and, by its long name, a key of the --config file: file < environment <
/// flag.
#[derive(Debug, Parser)]
#[command(name = "cappy-coordinator", version = cappy_process::VERSION)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGINT or SIGTERM
    Serve(Serve),
}

#[derive(Debug, Args)]
struct Serve {
    /// TOML file with settings
    #[arg(long, value_name = "FILE", env = "CAPPY_CONFIG")]
    config: Option<PathBuf>,
    /// Address for gRPC
    #[arg(long, value_name = "ADDRESS", env = "CAPPY_LISTEN", default_value = "127.0.0.1:50051")]
    listen: SocketAddr,
    /// Address for health and metrics over HTTP [default: none]
    #[arg(long, value_name = "ADDRESS", env = "CAPPY_HTTP")]
    http: Option<SocketAddr>,
    /// Job store: sqlite://PATH
    #[arg(long, value_name = "URL", env = "CAPPY_STORE", default_value = "sqlite://cappy-state/jobs.sqlite")]
    store: String,
    /// Artifact store: file:///DIR, or a folder
    #[arg(long, value_name = "URL", env = "CAPPY_ARTIFACTS", default_value = "cappy-state/artifacts")]
    artifacts: String,
    /// Seconds from a worker's last word to the return of its leases
    #[arg(long, value_name = "SECONDS", env = "CAPPY_LEASE_TTL", default_value_t = config::LEASE_TTL.as_secs(),
          value_parser = clap::value_parser!(u64).range(2..=86_400))]
    lease_ttl: u64,
    /// Attempts that a shard gets before it is set aside
    #[arg(long, value_name = "N", env = "CAPPY_MAX_ATTEMPTS", default_value_t = 3,
          value_parser = clap::value_parser!(u32).range(1..=100))]
    max_attempts: u32,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Log more; twice for everything
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

fn main() -> ExitCode {
    let Arguments { command: Command::Serve(arguments) } = settings::parse();
    logging::start(logging::Verbosity::from_flags(arguments.quiet, arguments.verbose.saturating_add(1)));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return Code::Failed.into();
        }
    };
    match runtime.block_on(serve(arguments)) {
        Ok(()) => Code::Done.into(),
        Err(error) => {
            eprintln!("error: {error:#}");
            Code::Failed.into()
        }
    }
}

async fn serve(arguments: Serve) -> anyhow::Result<()> {
    let token = CancellationToken::new();
    shutdown::on_signal(token.clone());
    let mut config = Config::new(arguments.listen, arguments.store, arguments.artifacts);
    config.http = arguments.http;
    config.lease_ttl = Duration::from_secs(arguments.lease_ttl);
    // A worker must have a few chances to be heard before its leases go.
    config.heartbeat_interval = config::HEARTBEAT_INTERVAL.min(config.lease_ttl / 4);
    config.reconnect_grace = config::RECONNECT_GRACE.min(config.lease_ttl);
    config.max_attempts = arguments.max_attempts;
    let handle = start(config, token.clone()).await.context("the coordinator cannot start")?;
    // For scripts that let the system choose the port.
    println!("listening on {}", handle.local_addr());
    if let Some(address) = handle.http_addr() {
        println!("http on {address}");
    }
    handle.stopped().await;
    Ok(())
}
