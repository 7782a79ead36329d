//! Processes that end with the test.

use std::{
    fs::{self, File},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{Ended, Sandbox};

/// How long any state is waited for before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// How often a state is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Lines of a log that are shown when a test fails.
const SHOWN_LINES: usize = 60;

/// What a process can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// `kill -9`.
    Kill,
    /// What `abort` leads to.
    Abort,
}

impl Signal {
    /// Sends it to a process, or with a negative id to a process group.
    pub fn send(self, id: i64) {
        let name = match self {
            Self::Interrupt => "-INT",
            Self::Kill => "-KILL",
            Self::Abort => "-ABRT",
        };
        // The process may have ended already.
        let _ = Command::new("kill").args([name, "--", &id.to_string()]).stderr(Stdio::null()).status();
    }
}

/// Waits for the end of its standard input, then kills a process group.
const LEASH: &str = "read -r line; kill -KILL -- \"-$0\"";

/// A started process, in a process group of its own.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    /// Kills the group when the test itself is killed and nothing here is dropped.
    leash: Child,
    stdout: PathBuf,
    stderr: PathBuf,
    over: bool,
}

impl Running {
    /// Starts it with its output in files of the sandbox.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(name: &str, mut command: Command, sandbox: &Sandbox) -> Self {
        let number = sandbox.next();
        let (stdout, stderr) =
            (sandbox.path(format!("{number}-{name}.out")), sandbox.path(format!("{number}-{name}.err")));
        let create = |path| File::create(path).expect("a sandbox is writable");
        command.stdout(create(&stdout)).stderr(create(&stderr)).process_group(0);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let leash = Command::new("sh")
            .args(["-c", LEASH, &child.id().to_string()])
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("there is a shell");
        Self { name: name.to_owned(), child, leash, stdout, stderr, over: false }
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stdout).unwrap_or_default()).into_owned()
    }

    /// What it has logged so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) {
        signal.send(self.child.id().into());
    }

    /// Kills it and all that it started, and returns when it is gone.
    pub fn kill(&mut self) {
        if !self.over {
            Signal::Kill.send(-i64::from(self.child.id()));
            // It cannot refuse; a failure means that it was waited for.
            let _ = self.child.wait();
            self.let_go();
        }
    }

    /// It is over: its id may be another's soon.
    fn let_go(&mut self) {
        let _ = self.leash.kill();
        let _ = self.leash.wait();
        self.over = true;
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// After [`PATIENCE`].
    pub fn wait(mut self) -> Ended {
        let status = self.wait_status();
        self.let_go();
        Ended { code: status.code(), signal: status.signal(), stdout: self.stdout(), stderr: self.stderr() }
    }

    fn wait_status(&mut self) -> ExitStatus {
        let name = self.name.clone();
        wait_until(&format!("the end of {name}"), || {
            self.child.try_wait().expect("a child can be waited for")
        })
    }

    /// Waits for a line of its standard output; returns what follows `prefix` there.
    ///
    /// # Panics
    /// When the process ends first, and after [`PATIENCE`].
    pub fn wait_line(&mut self, prefix: &str) -> String {
        wait_until(&format!("`{prefix}` of {}", self.name.clone()), || {
            let ended = self.child.try_wait().expect("a child can be waited for");
            let text = self.stdout();
            let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
            let found = whole.lines().find_map(|line| line.strip_prefix(prefix)).map(str::to_owned);
            if found.is_none()
                && let Some(status) = ended
            {
                panic!("{} ended ({status}) before it said `{prefix}`: {}", self.name, self.stderr());
            }
            found
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = self.stderr();
            let lines: Vec<&str> = log.lines().collect();
            let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
            eprintln!("--- the end of {}'s log\n{}\n---", self.name, shown.join("\n"));
        }
    }
}

/// Looks until there is something.
///
/// # Panics
/// After [`PATIENCE`], naming what was waited for.
pub fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        thread::sleep(POLL);
    }
}
