//! A coordinator and workers, each a process with state of its own.

use std::path::PathBuf;

use crate::{Client, Observer, Running, Sandbox, Signal, programs, wait_until};

/// Seconds from a worker's last word to the return of its leases: short, so that stories about lost workers are, and
/// long enough for a busy machine.
const LEASE_TTL_SECONDS: &str = "8";

/// Shards that a test's worker runs at once: one keeps `busy` and `in the middle of a shard` the same thing.
const SLOTS: &str = "1";

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterPlan {
    /// Workers.
    pub workers: usize,
    /// Backends in their plugin directories.
    pub plugins: &'static [&'static str],
    /// More environment for the workers.
    pub worker_environment: Vec<(String, String)>,
}

impl Default for ClusterPlan {
    fn default() -> Self {
        Self { workers: 1, plugins: &["candle"], worker_environment: Vec::new() }
    }
}

/// Processes that make a cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Workers, in the order in which they were started.
    pub workers: Vec<Worker>,
    /// The coordinator.
    pub coordinator: Coordinator,
    // Dropped last: the processes' files are in it.
    sandbox: Sandbox,
}

impl Cluster {
    /// Starts it; returns when every worker serves.
    ///
    /// # Panics
    /// When something does not start.
    pub fn start(plan: &ClusterPlan) -> Self {
        let sandbox = Sandbox::new();
        let coordinator = Coordinator::start(&sandbox);
        let workers =
            (0..plan.workers).map(|index| Worker::start(&sandbox, index, plan, coordinator.url())).collect();
        let cluster = Self { workers, coordinator, sandbox };
        cluster.observer().wait_workers("every worker serves", |workers| workers.len() == plan.workers);
        cluster
    }

    /// Its place.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// A client of it.
    pub fn client(&self) -> Client<'_> {
        Client::of(&self.sandbox, self.coordinator.url())
    }

    /// Someone who watches it.
    pub fn observer(&self) -> Observer {
        Observer::new(self.coordinator.url())
    }

    /// Kills the coordinator.
    pub fn kill_coordinator(&mut self) {
        self.coordinator.running.kill();
    }

    /// Starts the coordinator again, on the same address and the same state.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart_coordinator(&mut self) {
        self.coordinator = Coordinator::start_on(&self.sandbox, &self.coordinator.address);
    }
}

/// `cappy-coordinator serve`.
#[derive(Debug)]
pub struct Coordinator {
    running: Running,
    address: String,
    url: String,
}

impl Coordinator {
    fn start(sandbox: &Sandbox) -> Self {
        Self::start_on(sandbox, "127.0.0.1:0")
    }

    fn start_on(sandbox: &Sandbox, address: &str) -> Self {
        let mut command = sandbox.command(&programs().coordinator);
        command.args(["serve", "--listen", address, "--lease-ttl", LEASE_TTL_SECONDS]);
        command.arg("--store").arg(sandbox.path("coordinator/jobs.sqlite"));
        command.arg("--artifacts").arg(sandbox.path("coordinator/artifacts"));
        let mut running = Running::start("coordinator", command, sandbox);
        let address = running.wait_line("listening on ");
        Self { running, url: format!("http://{address}"), address }
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// `cappy-worker serve`: a supervisor, and its child that computes.
#[derive(Debug)]
pub struct Worker {
    running: Running,
    name: String,
}

impl Worker {
    fn start(sandbox: &Sandbox, index: usize, plan: &ClusterPlan, coordinator: &str) -> Self {
        let name = format!("worker-{index}");
        let plugins: PathBuf = sandbox.folder(format!("{name}/plugins"));
        for backend in plan.plugins {
            programs().install(backend, &plugins);
        }
        let mut command = sandbox.command(&programs().worker);
        command.args([
            "serve",
            "--coordinator",
            coordinator,
            "--devices",
            "cpu",
            "--slots",
            SLOTS,
            "--name",
            &name,
        ]);
        command.arg("--plugin-path").arg(&plugins);
        command.arg("--cache-dir").arg(sandbox.path(format!("{name}/cache")));
        command.env("CAPPY_DATA_DIR", sandbox.path(format!("{name}/data")));
        command.envs(plan.worker_environment.iter().map(|(name, value)| (name, value)));
        Self { running: Running::start(&name, command, sandbox), name }
    }

    /// As the coordinator lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.running.stderr()
    }

    /// Kills supervisor and child at once, as a machine that fails does.
    pub fn kill(&mut self) {
        self.running.kill();
    }

    /// How many children its supervisor has started so far.
    pub fn children_started(&self) -> usize {
        self.children().len()
    }

    /// Sends a signal to the child that computes; the supervisor stays.
    pub fn signal_child(&self, signal: Signal) {
        let last = wait_until("the worker's child", || self.children().pop());
        signal.send(last);
    }

    /// Process ids from the supervisor's log, oldest first.
    fn children(&self) -> Vec<i64> {
        let log = self.log();
        let entries = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        entries
            .filter(|entry| entry["message"] == "started a worker process")
            .filter_map(|entry| entry["pid"].as_i64())
            .collect()
    }
}
