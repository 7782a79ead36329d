//! The command line's grammar. Each verb's own arguments stand beside the verb in [`crate::commands`].

use std::path::PathBuf;

use clap::{Args, Parser, ValueEnum, builder::PossibleValuesParser};

use crate::commands::Verb;

/// Score, generate and boost with Cappy: on a cluster, or on this machine alone.
///
/// Without --coordinator (or CAPPY_COORDINATOR) a coordinator and a worker run inside this process, with their
/// state under --data-dir; the commands and the results are the same.
///
/// Exit codes: 0 done, 1 failed, 2 usage, 3 coordinator unreachable, 4 partial (some rows failed), 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "cappy-client", version = cappy_process::VERSION, propagate_version = true, max_term_width = 110)]
pub struct Arguments {
    /// Where, how, and how loud.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Flags that every verb takes.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Coordinator to use, such as http://127.0.0.1:50051 [default: an embedded cluster]
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "CAPPY_COORDINATOR",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub coordinator: Option<String>,
    /// Use the embedded cluster even if a coordinator is configured
    #[arg(long, global = true, help_heading = "Global options")]
    pub local: bool,
    /// Where the embedded cluster keeps jobs and artifacts [default: ~/.local/share/cappy]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "CAPPY_DATA_DIR",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub data_dir: Option<PathBuf>,
    /// How results are printed [default: table on a terminal, ndjson otherwise]
    // A text, because the importers' own `--output DIR` has the same name.
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        value_parser = PossibleValuesParser::new(["table", "json", "ndjson"]),
        help_heading = "Global options"
    )]
    pub output: Option<String>,
    /// Which backend shall run the models [default: any that can]
    #[arg(long, global = true, value_enum, value_name = "NAME", help_heading = "Global options")]
    pub backend: Option<BackendName>,
    /// Number format that the models compute in
    #[arg(long, global = true, value_enum, default_value_t = Dtype::Auto, help_heading = "Global options")]
    pub dtype: Dtype,
    /// Folder with backends for the embedded cluster, beside candle, which is built in
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "CAPPY_PLUGIN_PATH",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub plugin_path: Option<PathBuf>,
    /// Folder with libtorch's libraries, for the libtorch backend [default: libtorch/torch/lib near the plugins]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "CAPPY_TORCH_LIB_DIR",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub torch_lib_dir: Option<PathBuf>,
    /// Say nothing but results and errors
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub quiet: bool,
    /// Log what happens; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub verbose: u8,
    /// Token sent to the coordinator
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        env = "CAPPY_TOKEN",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub token: Option<String>,
    /// Certificate authority (PEM) that signed an https coordinator's certificate [default: the system's]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "CAPPY_TLS_CA",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub tls_ca: Option<PathBuf>,
    /// TOML file with settings (flags' long names as keys)
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "CAPPY_CONFIG",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub config: Option<PathBuf>,
}

/// See `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Table,
    /// One JSON document.
    Json,
    /// One JSON object a line.
    Ndjson,
}

/// See `--backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// Pure Rust, the default.
    Candle,
    /// PyTorch's library.
    Libtorch,
}

/// See `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// What suits the device: f32 on a CPU.
    Auto,
    /// 32-bit floats.
    F32,
    /// Brain floats.
    Bf16,
    /// 8-bit integers.
    Int8,
}

impl Global {
    /// What `--output` says; nothing where it is an importer's folder.
    pub fn format(&self) -> Option<Format> {
        match self.output.as_deref()? {
            "table" => Some(Format::Table),
            "json" => Some(Format::Json),
            "ndjson" => Some(Format::Ndjson),
            _ => None,
        }
    }

    /// The backend's name on the wire; empty: any.
    pub fn backend_name(&self) -> String {
        match self.backend {
            None => String::new(),
            Some(BackendName::Candle) => "candle".into(),
            Some(BackendName::Libtorch) => "libtorch".into(),
        }
    }

    /// The number format's name on the wire.
    pub fn dtype_name(&self) -> String {
        self.dtype.to_possible_value().expect("no variant is skipped").get_name().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Arguments::command().debug_assert();
    }
}
