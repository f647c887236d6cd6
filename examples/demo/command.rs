//! Running the machine's own tools (mkfs, mount, fsfreeze …) with an end, and ending what was started, by pid.

use std::{
    fs::File,
    io::Read,
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Failure, ledger::now};

/// How often a wait looks again.
const LOOK: Duration = Duration::from_millis(2);

/// Waits for `child` until `limit` has passed.
///
/// # Errors
/// waitpid(2) failed. `Ok(None)`: it still runs.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>, Failure> {
    let until = now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if now() >= until {
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

/// Runs `command` with empty stdin, keeps what it prints, and kills it at `limit`.
///
/// # Errors
/// It could not be started, or was killed at the limit.
pub fn output(command: &mut Command, limit: Duration) -> Result<Output, Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = started.map_err(|e| format!("start {name}: {e}"))?;
    let drain = |mut pipe: Box<dyn Read + Send>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            bytes
        })
    };
    let stdout = drain(Box::new(child.stdout.take().expect("piped")));
    let stderr = drain(Box::new(child.stderr.take().expect("piped")));
    let Some(status) = wait(&mut child, limit)? else {
        let _ = child.kill();
        return Err(format!("run {name}: it did not end within {limit:?}").into());
    };
    let bytes = |drained: thread::JoinHandle<Vec<u8>>| drained.join().expect("a reader does not panic");
    Ok(Output { status, stdout: bytes(stdout), stderr: bytes(stderr) })
}

/// Runs `command` and wants status 0.
///
/// # Errors
/// As [`output`], or any other status; the sentence carries what it printed.
pub fn succeed(command: &mut Command, limit: Duration) -> Result<String, Failure> {
    let ran = output(command, limit)?;
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    if ran.status.success() {
        return Ok(said);
    }
    let complaint = format!("{said}{}", String::from_utf8_lossy(&ran.stderr));
    let last: Vec<_> = complaint.lines().rev().filter(|l| !l.trim().is_empty()).take(3).collect();
    let last: Vec<_> = last.into_iter().rev().collect();
    Err(format!("run {}: {}: {}", command.get_program().display(), ran.status, last.join("; ")).into())
}

/// A process started in the background, its output in a file; killed when dropped.
#[derive(Debug)]
pub struct Background(Child);

impl Background {
    /// # Errors
    /// It could not be started, or `log` cannot be created.
    pub fn start(command: &mut Command, log: &Path) -> Result<Background, Failure> {
        let out = File::create(log).map_err(|e| format!("create {}: {e}", log.display()))?;
        let started = command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn();
        Ok(Background(started.map_err(|e| format!("start {}: {e}", command.get_program().display()))?))
    }

    /// Has it ended by itself?
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().ok().flatten()
    }

    /// Sends `signal` and waits.
    ///
    /// # Errors
    /// It still runs after `limit`; it is killed then.
    pub fn end(mut self, signal: Signal, limit: Duration) -> Result<ExitStatus, Failure> {
        if let Some(status) = self.ended() {
            return Ok(status);
        }
        kill(Pid::from_raw(self.0.id().cast_signed()), signal)?;
        wait(&mut self.0, limit)?.ok_or_else(|| format!("process {} ignored {signal}", self.0.id()).into())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        // A process blocked on a frozen file system dies only when that is thawed: do not wait for it for ever.
        let _ = wait(&mut self.0, Duration::from_secs(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_does_not_end_is_killed_at_the_limit() {
        let began = now();
        let ran = output(Command::new("sleep").arg("60"), Duration::from_millis(50));
        assert!(ran.expect_err("killed").to_string().contains("did not end"));
        assert!(now() - began < Duration::from_secs(30));
    }

    #[test]
    fn a_failing_tool_is_reported_with_what_it_said() {
        let ran = succeed(Command::new("sh").args(["-c", "echo no such disk >&2; exit 3"]), Duration::from_secs(10));
        let said = ran.expect_err("status 3").to_string();
        assert!(said.contains("no such disk") && said.contains('3'), "{said}");
    }
}
