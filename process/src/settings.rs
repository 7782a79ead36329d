//! Settings from three places: a TOML file, the environment, the command line; the later wins.
//!
//! The file's keys are the long names of the flags (`listen`, `plugin-path`; `_` and `-` are the same), at the top
//! level or in a table named after the subcommand. They become the defaults of the clap command, so precedence,
//! types and messages are clap's own. Mistakes in the file and in the environment are collected and told together.

use std::{
    env,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
};

use clap::{Arg, Command, CommandFactory, FromArgMatches};

/// Parses the process's own command line.
///
/// Ends the process with clap's message (or the list of mistakes) and exit code 2 on a usage error.
pub fn parse<P: CommandFactory + FromArgMatches>() -> P {
    match try_parse_from::<P>(env::args_os().collect()) {
        Ok(parsed) => parsed,
        Err(SettingsError::Usage(error)) => error.exit(),
        Err(error) => {
            eprintln!("error: {error}");
            std::process::exit(i32::from(crate::exit::Code::Usage as u8));
        }
    }
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The command line is wrong (or asks for help).
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// The configuration file cannot be read.
    #[error("cannot read the configuration file `{}`: {reason}", path.display())]
    File {
        /// Given with `--config`.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Everything that is wrong in the file and the environment.
    #[error("{0}")]
    Mistakes(Mistakes),
}

/// A list of mistakes, a line each.
#[derive(Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in the configuration", if self.0.len() == 1 { "a mistake" } else { "mistakes" })?;
        self.0.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// Parses a command line; the configuration file is the one that `--config FILE` or `CAPPY_CONFIG` names.
///
/// # Errors
/// Usage errors of clap, an unreadable file, or all mistakes of file and environment.
pub fn try_parse_from<P: CommandFactory + FromArgMatches>(args: Vec<OsString>) -> Result<P, SettingsError> {
    let mut command = P::command();
    let mut mistakes = Vec::new();
    if let Some(path) = config_path(&args) {
        let file_error = |reason: String| SettingsError::File { path: path.clone(), reason };
        let text = fs::read_to_string(&path).map_err(|error| file_error(error.to_string()))?;
        let table: toml::Table =
            text.parse().map_err(|error: toml::de::Error| file_error(error.to_string()))?;
        command = with_defaults(command, &table, &path, &mut mistakes);
    }
    check_environment(&command, &mut mistakes);
    if !mistakes.is_empty() {
        return Err(SettingsError::Mistakes(Mistakes(mistakes)));
    }
    let matches = command.try_get_matches_from(args)?;
    Ok(P::from_arg_matches(&matches)?)
}

fn config_path(args: &[OsString]) -> Option<PathBuf> {
    let mut rest = args.iter().skip(1);
    while let Some(arg) = rest.next() {
        if arg == "--config" {
            return rest.next().map(PathBuf::from);
        }
        if let Some(path) = arg.to_str().and_then(|text| text.strip_prefix("--config=")) {
            return Some(PathBuf::from(path));
        }
    }
    env::var_os("CAPPY_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn with_defaults(
    mut command: Command,
    table: &toml::Table,
    path: &Path,
    mistakes: &mut Vec<String>,
) -> Command {
    for (key, value) in table {
        let name = key.replace('_', "-");
        if let toml::Value::Table(inner) = value {
            if command.find_subcommand(&name).is_some() {
                command = command.mut_subcommand(&name, |sub| with_defaults(sub, inner, path, mistakes));
            } else {
                mistakes.push(format!("{}: there is no section `{key}`", path.display()));
            }
            continue;
        }
        let mut known = false;
        command = default_everywhere(command, &name, value, &mut known, &mut |reason| {
            mistakes.push(format!("{}: `{key}`: {reason}", path.display()));
        });
        if !known {
            mistakes.push(format!("{}: there is no setting `{key}`", path.display()));
        }
    }
    command
}

/// A top-level key is the default of the flag of that name wherever the program has it.
fn default_everywhere(
    mut command: Command,
    name: &str,
    value: &toml::Value,
    known: &mut bool,
    mistake: &mut dyn FnMut(String),
) -> Command {
    let found = command.get_arguments().find(|arg| arg.get_long() == Some(name)).cloned();
    if let Some(arg) = found {
        let first = !*known;
        *known = true;
        match texts(value).and_then(|texts| {
            texts.iter().try_for_each(|text| check(&arg, text))?;
            Ok(texts)
        }) {
            Ok(texts) => {
                command = command.mut_arg(arg.get_id(), |arg| arg.default_values(texts).required(false));
            }
            Err(reason) if first => mistake(reason),
            Err(_) => {}
        }
    }
    let subcommands: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    for sub in subcommands {
        command = command.mut_subcommand(sub, |sub| default_everywhere(sub, name, value, known, mistake));
    }
    command
}

fn texts(value: &toml::Value) -> Result<Vec<String>, String> {
    match value {
        toml::Value::String(text) => Ok(vec![text.clone()]),
        toml::Value::Integer(number) => Ok(vec![number.to_string()]),
        toml::Value::Float(number) => Ok(vec![number.to_string()]),
        toml::Value::Boolean(yes) => Ok(vec![yes.to_string()]),
        toml::Value::Array(items) => {
            let lists = items.iter().map(texts).collect::<Result<Vec<_>, _>>()?;
            Ok(lists.into_iter().flatten().collect())
        }
        toml::Value::Datetime(_) | toml::Value::Table(_) => Err("expected a text, a number or a list".into()),
    }
}

/// Runs a value through the argument's own parser, so that the reason is clap's.
fn check(arg: &Arg, text: &str) -> Result<(), String> {
    let name = arg.get_long().unwrap_or("value").to_owned();
    let probe = Arg::new("value").long(name.clone()).value_parser(arg.get_value_parser().clone());
    Command::new("check")
        .no_binary_name(true)
        .disable_help_flag(true)
        .arg(probe)
        .try_get_matches_from([format!("--{name}={text}")])
        .map(drop)
        .map_err(|error| {
            error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
        })
}

fn check_environment(command: &Command, mistakes: &mut Vec<String>) {
    for arg in command.get_arguments() {
        let Some(name) = arg.get_env().and_then(|name| name.to_str()) else { continue };
        let Ok(text) = env::var(name) else { continue };
        if arg.get_action().takes_values()
            && let Err(reason) = check(arg, &text)
        {
            let line = format!("{name}: {reason}");
            if !mistakes.contains(&line) {
                mistakes.push(line);
            }
        }
    }
    command.get_subcommands().for_each(|sub| check_environment(sub, mistakes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser, Debug, PartialEq)]
    #[command(name = "program")]
    struct Program {
        #[command(subcommand)]
        command: Sub,
    }

    #[derive(clap::Subcommand, Debug, PartialEq)]
    enum Sub {
        Serve {
            #[arg(long)]
            config: Option<PathBuf>,
            #[arg(long, default_value = "127.0.0.1:1")]
            listen: std::net::SocketAddr,
            #[arg(long, default_value_t = 3)]
            slots: u32,
        },
    }

    fn run(file: &str, args: &[&str]) -> Result<Program, SettingsError> {
        let path = env::temp_dir().join(format!("cappy-settings-{}-{:p}", std::process::id(), &file));
        fs::write(&path, file).unwrap();
        let mut all: Vec<OsString> =
            vec!["program".into(), "serve".into(), "--config".into(), path.clone().into()];
        all.extend(args.iter().map(OsString::from));
        let result = try_parse_from(all);
        fs::remove_file(path).unwrap();
        result
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let Sub::Serve { listen, slots, .. } =
            run("listen = '127.0.0.1:9'\nslots = 7", &["--slots", "8"]).unwrap().command;
        assert_eq!((listen.port(), slots), (9, 8));
        let Sub::Serve { slots, .. } = run("[serve]\nslots = 5", &[]).unwrap().command;
        assert_eq!(slots, 5);
    }

    #[test]
    fn all_mistakes_of_a_file_are_told_at_once() {
        let SettingsError::Mistakes(Mistakes(lines)) =
            run("listen = 'nowhere'\nslots = -1\nspeed = 9", &[]).unwrap_err()
        else {
            panic!("expected mistakes");
        };
        assert_eq!(lines.len(), 3, "{lines:?}");
        for (line, word) in lines.iter().zip(["listen", "slots", "speed"]) {
            assert!(line.contains(word), "{line}");
        }
    }
}
