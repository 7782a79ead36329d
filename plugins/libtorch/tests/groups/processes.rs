//! Ranks as processes: this test program, started again.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use cappy_plugin_abi::{Control, Failure, Group, GroupKind};
use cappy_plugin_libtorch::group::Ranks;

const SCENE: &str = "CAPPY_TEST_SCENE";
const GROUP: &str = "CAPPY_TEST_GROUP";
/// Before each line that a rank says; the test harness writes lines of its own.
const MARK: &str = "rank says: ";

/// Where ranks compute; several share one GPU.
pub fn device() -> tch::Device {
    match cappy_plugin_suite::device().as_str() {
        "cpu" => tch::Device::Cpu,
        name => {
            let index = name.strip_prefix("cuda:").and_then(|index| index.parse().ok());
            tch::Device::Cuda(index.unwrap_or_else(|| panic!("`{name}` is no `cpu` or `cuda:0`")))
        }
    }
}

/// A part that ranks play: its name, and what a rank does.
pub type Scene = (&'static str, fn(&Group));

/// Whether this process was started as a rank.
#[allow(dead_code, reason = "for the example that measures memory; tests always play")]
pub fn is_rank() -> bool {
    std::env::var_os(SCENE).is_some()
}

/// Runs the part of one rank when this process was started as one.
pub fn play(scenes: &[Scene]) {
    let Ok(name) = std::env::var(SCENE) else { return };
    let group: Group = serde_json::from_str(&std::env::var(GROUP).expect("a group")).expect("it is one");
    let (_, scene) = scenes.iter().find(|(known, _)| *known == name).expect("a known scene");
    scene(&group);
    // The last word; then wait until the parent lets go, since rank 0's store goes with its process.
    say("end");
    hear();
}

/// Tells the parent.
pub fn say(text: &str) {
    println!("\n{MARK}{}", text.replace('\n', " "));
    std::io::stdout().flush().expect("the parent reads");
}

/// Says how a call ended.
pub fn say_result<T>(result: Result<T, Failure>) {
    match result {
        Ok(_) => say("fine"),
        Err(failure) => say(&format!("{:?}: {}", failure.code, failure.message)),
    }
}

/// Waits for a line of the parent, or for its end.
pub fn hear() {
    std::io::stdin().read_line(&mut String::new()).expect("readable");
}

/// Joins, or says why not and leaves the scene.
pub fn join(group: &Group) -> Option<Arc<Ranks>> {
    match Ranks::join(group, device()) {
        Ok(ranks) => Some(ranks),
        Err(failure) => {
            say_result::<()>(Err(failure));
            None
        }
    }
}

/// Cancels once the parent has said so.
pub struct WhenTold(std::sync::mpsc::Receiver<()>);

impl WhenTold {
    pub fn new() -> std::sync::Mutex<Self> {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            hear();
            let _ = sender.send(());
        });
        std::sync::Mutex::new(Self(receiver))
    }
}

/// A control that asks a [`WhenTold`].
pub struct Told<'a>(pub &'a std::sync::Mutex<WhenTold>);

impl Control for Told<'_> {
    fn cancelled(&self) -> bool {
        self.0.lock().expect("one thread").0.try_recv().is_ok()
    }
    fn progress(&self, _: u64, _: u64) {}
}

/// A rank in a process of its own. Killed when it is dropped.
pub struct Rank {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Rank {
    pub fn start(scene: &str, group: &Group) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "a_rank", "--nocapture", "--test-threads=1"]);
        command.env(SCENE, scene).env(GROUP, serde_json::to_string(group).expect("text"));
        // Two ranks and more share the cores, and libtorch's own words are not the test's.
        command.env("OMP_NUM_THREADS", "1").env("TORCH_CPP_LOG_LEVEL", "FATAL");
        if cappy_plugin_suite::device() != "cpu" {
            // NCCL refuses two ranks of one host on one GPU: each gets a host of its own, and a socket to the others.
            command.env("NCCL_HOSTID", format!("rank-{}", group.rank)).env("NCCL_SOCKET_IFNAME", "lo");
            // As the worker sets them.
            command.env("NCCL_RUNTIME_CONNECT", "0").env("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0");
            command.env("TORCH_NCCL_DUMP_ON_TIMEOUT", "0").env("TORCH_NCCL_ENABLE_MONITORING", "0");
        }
        if let Some(listener) = group.listener {
            // SAFETY: between fork and exec only this one system call, on a descriptor that the caller holds.
            unsafe {
                command.pre_exec(move || match libc::fcntl(listener, libc::F_SETFD, 0) {
                    -1 => Err(std::io::Error::last_os_error()),
                    _ => Ok(()),
                })
            };
        }
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped.spawn().expect("it starts");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, input, output }
    }

    /// The next thing it says.
    pub fn hears(&mut self) -> String {
        let mut line = String::new();
        while self.output.read_line(&mut line).expect("readable") > 0 {
            if let Some(text) = line.trim_end().strip_prefix(MARK) {
                return text.to_owned();
            }
            line.clear();
        }
        panic!("a rank ended before it had said what was waited for");
    }

    #[track_caller]
    pub fn expect(&mut self, words: &str) {
        let heard = self.hears();
        assert!(heard.contains(words), "`{heard}` does not say `{words}`");
    }

    pub fn tell(&mut self) {
        self.input.as_mut().expect("open").write_all(b"\n").expect("it listens");
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// Lets it end by itself, having said `end`.
    pub fn ends(mut self) {
        self.expect("end");
        self.input.take();
        assert!(self.child.wait().expect("it ends").success());
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A group on this machine: its ranks' descriptions, and the socket of rank 0.
pub struct Place {
    pub groups: Vec<Group>,
    _listener: TcpListener,
}

impl Place {
    pub fn new(world: u32, timeout_seconds: u64) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let rank = |rank| Group {
            kind: GroupKind::Data,
            rank,
            world,
            rendezvous: listener.local_addr().expect("bound").to_string(),
            listener: (rank == 0).then_some(listener.as_raw_fd()),
            host: "127.0.0.1".into(),
            timeout_seconds,
        };
        Self { groups: (0..world).map(rank).collect(), _listener: listener }
    }

    /// Starts all ranks. The socket is then rank 0's alone.
    pub fn start(self, scene: &str) -> Vec<Rank> {
        self.groups.iter().map(|group| Rank::start(scene, group)).collect()
    }
}
