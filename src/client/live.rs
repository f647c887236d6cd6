//! The one line on a terminal that tells what is happening while a hold is prepared. A terminal is never on a disk.

use std::io::Write;

use tokio::task::JoinHandle;
use tokio_stream::StreamExt;

use super::connect::Client;
use crate::proto;

/// A line being rewritten, or nothing.
pub struct Live(Option<JoinHandle<()>>);

/// Starts the line if `terminal`.
pub fn start(client: &Client, terminal: bool) -> Live {
    let mut client = client.clone();
    Live(terminal.then(|| {
        tokio::spawn(async move {
            let Ok(events) = client.watch(proto::WatchRequest::default()).await else { return };
            let mut events = events.into_inner();
            while let Some(Ok(response)) = events.next().await {
                if let Some(line) = response.event.and_then(|event| text(&event)) {
                    write(&line);
                }
            }
        })
    }))
}

impl Live {
    /// Wipes the line.
    pub async fn stop(self) {
        if let Some(task) = self.0 {
            task.abort();
            // it ends at once; its result says only that it was told to
            let _ = task.await;
            write("");
        }
    }
}

fn write(line: &str) {
    // carriage return, erase the line: ECMA-48 EL. Nobody is left to tell if it fails
    let mut err = std::io::stderr().lock();
    let _ = write!(err, "\r\x1b[K{}", line.chars().take(78).collect::<String>()).and_then(|()| err.flush());
}

fn text(event: &proto::Event) -> Option<String> {
    match event.what.as_ref()? {
        proto::event::What::Phase(phase) => match proto::Phase::try_from(*phase).ok()? {
            proto::Phase::Preparing => Some("preparing: nobody waits yet".to_owned()),
            proto::Phase::Prepared => Some("prepared".to_owned()),
            proto::Phase::Quiescing => Some("quiescing: writers wait".to_owned()),
            proto::Phase::Held => Some("held".to_owned()),
            proto::Phase::Releasing => Some("letting go".to_owned()),
            proto::Phase::Idle | proto::Phase::Unspecified => None,
        },
        proto::event::What::Step(step) => {
            let outcome = super::words::outcome(step.outcome());
            Some(format!("{}: {outcome}", step.name))
        }
        proto::event::What::Problem(problem) => Some(problem.message.clone()),
        proto::event::What::Snapshot(_)
        | proto::event::What::Held(_)
        | proto::event::What::Released(_)
        | proto::event::What::Lagged(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_and_a_phase_each_have_their_line() {
        let event = |what| proto::Event { what: Some(what), ..Default::default() };
        let step =
            proto::Step { name: "fs:/var".into(), outcome: proto::StepOutcome::Done.into(), ..Default::default() };
        assert_eq!(text(&event(proto::event::What::Step(step))).as_deref(), Some("fs:/var: done"));
        let phase = proto::event::What::Phase(proto::Phase::Quiescing.into());
        assert_eq!(text(&event(phase)).as_deref(), Some("quiescing: writers wait"));
        assert_eq!(text(&event(proto::event::What::Lagged(3))), None);
    }
}
