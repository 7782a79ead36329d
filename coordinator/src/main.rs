//! `cappy-coordinator serve`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

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
    /// Seconds that the workers of a shard for several of them have to come together
    #[arg(long, value_name = "SECONDS", env = "CAPPY_GROUP_TIMEOUT",
          default_value_t = config::GROUP_TIMEOUT.as_secs(), value_parser = clap::value_parser!(u64).range(1..=86_400))]
    group_timeout: u64,
    /// Certificate chain of this server, PEM; with --tls-key, gRPC is served over TLS
    #[arg(long, value_name = "FILE", env = "CAPPY_TLS_CERT", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate, PEM
    #[arg(long, value_name = "FILE", env = "CAPPY_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// File with the token that callers must send [default: everybody may call]
    #[arg(long, value_name = "FILE", env = "CAPPY_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// File with the token that workers must send [default: the one of --token-file]
    #[arg(long, value_name = "FILE", env = "CAPPY_WORKER_TOKEN_FILE", requires = "token_file")]
    worker_token_file: Option<PathBuf>,
    /// Space that all artifacts together may take, such as 500GB or 2TiB [default: what the disk holds]
    #[arg(long, value_name = "SIZE", env = "CAPPY_DISK_QUOTA", value_parser = size)]
    disk_quota: Option<u64>,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Log more; twice for everything
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

fn file(flag: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {flag} `{}`", path.display()))
}

/// A token is one line.
fn token(flag: &str, path: &Path) -> anyhow::Result<String> {
    let text = String::from_utf8(file(flag, path)?).unwrap_or_default();
    let token = text.trim();
    let good = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    anyhow::ensure!(good, "{flag} `{}` must hold one token of visible ASCII characters", path.display());
    Ok(token.to_owned())
}

/// Bytes from `500GB` (thousands) or `2TiB` (1024s); no unit: bytes.
fn size(text: &str) -> Result<u64, String> {
    let error =
        || format!("`{text}` is not a size; give a number and B, kB, MB, GB, TB, KiB, MiB, GiB or TiB");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| error())?;
    let unit = unit.trim().to_ascii_lowercase();
    let (base, letter) = match unit.strip_suffix("ib") {
        Some(letter) => (1024_f64, letter),
        None => (1000_f64, unit.strip_suffix('b').unwrap_or(&unit)),
    };
    let power = ["", "k", "m", "g", "t"].iter().position(|known| *known == letter).ok_or_else(error)?;
    let bytes = number * base.powi(i32::try_from(power).map_err(|_| error())?);
    if (1.0..9e18).contains(&bytes) { Ok(bytes as u64) } else { Err(error()) }
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
    let stop = CancellationToken::new();
    shutdown::on_signal(stop.clone());
    let mut config = Config::new(arguments.listen, arguments.store, arguments.artifacts);
    config.http = arguments.http;
    config.lease_ttl = Duration::from_secs(arguments.lease_ttl);
    // A worker must have a few chances to be heard before its leases go.
    config.heartbeat_interval = config::HEARTBEAT_INTERVAL.min(config.lease_ttl / 4);
    config.reconnect_grace = config::RECONNECT_GRACE.min(config.lease_ttl);
    config.max_attempts = arguments.max_attempts;
    config.group_timeout = Duration::from_secs(arguments.group_timeout);
    config.disk_quota = arguments.disk_quota;
    if let (Some(certificate), Some(key)) = (&arguments.tls_cert, &arguments.tls_key) {
        config.tls =
            Some(config::Tls { certificate: file("--tls-cert", certificate)?, key: file("--tls-key", key)? });
    }
    if let Some(path) = &arguments.token_file {
        let worker = arguments.worker_token_file.as_ref();
        config.tokens = Some(config::Tokens {
            client: token("--token-file", path)?,
            worker: worker.map(|path| token("--worker-token-file", path)).transpose()?,
        });
        if config.tls.is_none() && !config.listen.ip().is_loopback() {
            tracing::warn!("tokens travel unencrypted: give --tls-cert and --tls-key");
        }
    }
    let handle = start(config, stop).await.context("the coordinator cannot start")?;
    // For scripts that let the system choose the port.
    println!("listening on {}", handle.local_addr());
    if let Some(address) = handle.http_addr() {
        println!("http on {address}");
    }
    handle.stopped().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("500GB", 500_000_000_000), ("2TiB", 2 << 40), ("1.5 kb", 1500), ("7", 7)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GB", "5XB", "-1GB", "0", "1e3", "1.2.3MB", "99999999TiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
