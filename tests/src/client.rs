//! `cappy-client`, as a user has it.

use std::{ffi::OsStr, fmt, fs::File, path::Path, process::Stdio};

use serde_json::Value;

use crate::{Running, Sandbox, programs};

/// Runs `cappy-client` in a sandbox: on a cluster by URL, or embedded.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    sandbox: &'a Sandbox,
    coordinator: Option<&'a str>,
}

/// How a process ended, and what it printed.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The signal.
    pub signal: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl<'a> Client<'a> {
    /// With the embedded cluster.
    pub fn embedded(sandbox: &'a Sandbox) -> Self {
        Self { sandbox, coordinator: None }
    }

    /// With a coordinator.
    pub fn of(sandbox: &'a Sandbox, coordinator: &'a str) -> Self {
        Self { sandbox, coordinator: Some(coordinator) }
    }

    /// Runs a command to its end.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ended {
        self.start(args).wait()
    }

    /// Runs a command to its end with this on its standard input.
    pub fn run_with_input<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>, input: &str) -> Ended {
        let path = self.sandbox.file(format!("{}-stdin", self.sandbox.next()), input);
        self.start_with(args, Some(&path)).wait()
    }

    /// Starts a command.
    pub fn start<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Running {
        self.start_with(args, None)
    }

    fn start_with<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        stdin: Option<&Path>,
    ) -> Running {
        let mut command = self.sandbox.command(&programs().client);
        command.args(args);
        if let Some(url) = self.coordinator {
            command.args(["--coordinator", url]);
        }
        command.stdin(stdin.map_or(Stdio::null(), |path| File::open(path).expect("just written").into()));
        Running::start("client", command, self.sandbox)
    }
}

impl Ended {
    /// Itself, if it ended with this exit code.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// Its standard output as one JSON document.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("not JSON ({error}): {self}"))
    }

    /// Its standard output as JSON Lines.
    ///
    /// # Panics
    /// When a line is no JSON.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        let parse =
            |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON ({error}): {self}"));
        self.stdout.lines().map(parse).collect()
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}")?,
            (None, signal) => write!(f, "ended by signal {}", signal.unwrap_or_default())?,
        }
        write!(f, "\n--- stdout\n{}--- stderr\n{}---", self.stdout, self.stderr)
    }
}
