//! One child process for each device, so that whatever kills one leaves the others alone.
//!
//! A child that dies is started again after a pause that grows while it keeps dying; why it died is logged. A child's
//! standard input is its leash: the line `drain` asks it to finish, the end of it (also when the supervisor itself is
//! killed) to stop at once.

use std::{
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// What a child reads when it shall finish and end.
pub const DRAIN_LINE: &str = "drain";

/// Variable in which a child finds how the one before it died.
pub const PREVIOUS_END: &str = "CAPPY_PREVIOUS_END";

/// First and longest pause before a child is started again.
const RESTART_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// A child that lived so long was all right: the next pause is the first again.
const SETTLED: Duration = Duration::from_secs(60);

/// Exit code of a child whose configuration is wrong: starting it again would not help.
const USAGE_EXIT: i32 = cappy_process::exit::Code::Usage as i32;

/// How a device's last child ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It finished what it was asked to.
    Done,
    /// It cannot run as it is configured.
    Unusable(String),
}

/// Runs a child for each device until `drain` (children finish) or `kill` (they end at once).
///
/// `command` makes the command of a device's child. Returns how each ended, in the order of `devices`.
pub async fn supervise(
    devices: Vec<String>,
    command: impl Fn(&str) -> Command + Clone + Send + 'static,
    drain: CancellationToken,
    kill: CancellationToken,
) -> Vec<Ended> {
    let mut children = JoinSet::new();
    for (index, device) in devices.iter().cloned().enumerate() {
        let (command, drain, kill) = (command.clone(), drain.clone(), kill.clone());
        children.spawn(async move { (index, keep(&device, command, drain, kill).await) });
    }
    let mut ended = vec![Ended::Done; devices.len()];
    while let Some(joined) = children.join_next().await {
        if let Ok((index, end)) = joined {
            ended[index] = end;
        }
    }
    ended
}

async fn keep(
    device: &str,
    command: impl Fn(&str) -> Command,
    drain: CancellationToken,
    kill: CancellationToken,
) -> Ended {
    let mut pause = RESTART_PAUSE.0;
    let mut previous_end = String::new();
    loop {
        let started = Instant::now();
        let mut command = command(device);
        command.stdin(Stdio::piped()).kill_on_drop(true).env(PREVIOUS_END, &previous_end);
        let reason = match command.spawn() {
            Err(error) => format!("cannot be started: {error}"),
            Ok(child) => {
                tracing::info!(device, pid = child.id(), "started a worker process");
                match wait(child, &drain, &kill).await {
                    Ok(status) if status.success() => return Ended::Done,
                    Ok(status) if status.code() == Some(USAGE_EXIT) => {
                        return Ended::Unusable(format!(
                            "the worker process of `{device}` cannot run; its message is above"
                        ));
                    }
                    Ok(status) => describe(status),
                    Err(error) => error.to_string(),
                }
            }
        };
        if drain.is_cancelled() || kill.is_cancelled() {
            return Ended::Done;
        }
        if started.elapsed() >= SETTLED {
            pause = RESTART_PAUSE.0;
        }
        tracing::error!(
            device,
            reason,
            pause_ms = pause.as_millis() as u64,
            "worker process died, starting it again"
        );
        previous_end = reason;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = drain.cancelled() => return Ended::Done,
            () = kill.cancelled() => return Ended::Done,
        }
        pause = (pause * 2).min(RESTART_PAUSE.1);
    }
}

async fn wait(
    mut child: Child,
    drain: &CancellationToken,
    kill: &CancellationToken,
) -> std::io::Result<ExitStatus> {
    let mut leash = child.stdin.take();
    let mut told = false;
    loop {
        tokio::select! {
            status = child.wait() => return status,
            () = drain.cancelled(), if !told => {
                told = true;
                if let Some(leash) = &mut leash {
                    // A child that does not read any more is about to be waited for.
                    let _ = leash.write_all(format!("{DRAIN_LINE}\n").as_bytes()).await;
                    let _ = leash.flush().await;
                }
            }
            () = kill.cancelled() => {
                child.kill().await?;
                return child.wait().await;
            }
        }
    }
}

/// `signal 9 (KILL)`, `exit code 1`.
fn describe(status: ExitStatus) -> String {
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt as _;
        if let Some(signal) = status.signal() {
            let name = match signal {
                4 => " (illegal instruction)",
                6 => " (abort)",
                7 => " (bus error)",
                9 => " (killed; the system does this when memory runs out)",
                11 => " (segmentation fault)",
                15 => " (terminated)",
                _ => "",
            };
            return format!("signal {signal}{name}");
        }
    }
    status.code().map_or_else(|| status.to_string(), |code| format!("exit code {code}"))
}

/// Waits for the supervisor's word on standard input: `Drain`, then `Stop`.
pub async fn leash(drain: CancellationToken, stop: CancellationToken) {
    use tokio::io::AsyncBufReadExt as _;
    let mut lines = tokio::io::BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if line.trim() == DRAIN_LINE {
            drain.cancel();
        }
    }
    stop.cancel();
}

#[cfg(all(test, unix))]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    async fn lines(path: &Path, count: usize) -> Vec<String> {
        loop {
            let text = fs::read_to_string(path).unwrap_or_default();
            if text.lines().count() >= count && text.ends_with('\n') {
                return text.lines().map(str::to_owned).collect();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_killed_child_is_started_again_and_a_drained_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script =
            format!("echo $$ $0 $CAPPY_PREVIOUS_END >> {}; read line; test \"$line\" = drain", log.display());
        let command = move |device: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", &script, device]);
            command
        };
        let (drain, kill) = (CancellationToken::new(), CancellationToken::new());
        let running = tokio::spawn(supervise(vec!["cpu".into()], command, drain.clone(), kill));
        let first = lines(&log, 1).await[0].clone();
        let pid = first.split(' ').next().unwrap().to_owned();
        assert!(Command::new("kill").args(["-9", &pid]).status().await.unwrap().success());
        let both = lines(&log, 2).await;
        assert!(both[0].ends_with(" cpu"), "nothing died before it: {both:?}");
        assert!(both[1].contains(" cpu signal 9 (killed"), "it knows how the first died: {both:?}");
        drain.cancel();
        assert_eq!(running.await.unwrap(), [Ended::Done]);
        assert_eq!(lines(&log, 2).await.len(), 2);
    }

    #[tokio::test]
    async fn a_child_that_is_configured_wrongly_is_not_started_again() {
        let command = |_: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", "exit 2"]);
            command
        };
        let (drain, kill) = (CancellationToken::new(), CancellationToken::new());
        let ended = supervise(vec!["cpu".into()], command, drain, kill).await;
        assert!(matches!(&ended[0], Ended::Unusable(message) if message.contains("`cpu`")));
    }
}
