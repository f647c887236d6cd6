//! `receipt` and `verify`: what a disk says of the hold it was cut in. They ask no daemon and write nothing.

use std::{fs, path::Path};

use serde_json::{Value as Json, json};

use super::{Answer, picture, show, words};
use crate::{
    cli,
    error::{Exit, Failure, reason},
    guest::platform::Instance,
    hold::{
        RefusalKind, receipt, restored,
        survey::Surroundings,
        verify::{self, Grade, Host, Refused, Verification},
    },
    json, proto,
};

/// `receipt [DIR]`: exit 0 if there is one, 1 if not, 3 if it cannot be believed.
///
/// # Errors
/// `DIR` is not a directory that can be read.
pub fn receipt(args: &cli::Receipt) -> Result<Answer, Failure> {
    if let Some(file) = &args.report {
        return report(args, file);
    }
    let root = directory(&args.dir)?;
    let found = match receipt::read(root) {
        Ok(Some(found)) => found,
        Ok(None) => {
            return Ok(Answer {
                document: json!({"root": root, "state": null, "hold_id": "", "receipt": null}),
                table: String::new(),
                sentence: format!("no receipt on {}: it has not been held, or not with a receipt", root.display()),
                exit: Exit::Failed,
            });
        }
        Err(error) => {
            let message = format!("failed to believe the receipt on {}: {error}", root.display());
            return Err(
                Failure::local(RefusalKind::FailedPrecondition, "RECEIPT_UNREADABLE", message).exiting(Exit::Broken)
            );
        }
    };
    let report = &found.record["report"];
    let text = |value: &Json| value.as_str().unwrap_or("-").to_owned();
    let verdict = match report["verdict"].as_str() {
        Some("unspecified") | None => "not known to this disk".to_owned(),
        Some(verdict) => verdict.to_owned(),
    };
    let rows = [
        ("hold", found.sector.hold_id.clone()),
        ("state", found.sector.state.to_string()),
        ("file system", format!("{} (UUID {})", text(&found.record["filesystem"]["mount"]), found.sector.fs_uuid)),
        ("prepared", text(&report["admitted_time"])),
        ("level", text(&report["consistency"])),
        ("verdict", verdict),
    ];
    let mut table = String::new();
    for (key, value) in rows {
        table.push_str(&format!("{key:<13}{value}\n"));
    }
    let report = json::from_json::<proto::Report>(report);
    if let Some(svg) = &args.svg {
        let report = report.map_err(|error| {
            let message = format!("failed to draw the receipt on {}: {error}", root.display());
            Failure::local(RefusalKind::FailedPrecondition, "RECEIPT_UNREADABLE", message).exiting(Exit::Broken)
        })?;
        return picture::drawn(&report, svg);
    }
    if let Ok(report) = report {
        table.push_str(&show::steps_and_gaps(&report));
        table.push_str(&picture::here(&report));
        // the disk may be anybody's, and a terminal obeys
        table.retain(|c| c == '\n' || !c.is_control());
    }
    let sentence = match found.sector.state {
        receipt::State::Frozen => "frozen: a copy that says so was cut while it was held",
        receipt::State::Released => "released: a copy that says so was cut after that hold",
        receipt::State::Restored => {
            "restored: a machine was started from a copy cut during that hold; what was written since is not part of it"
        }
        receipt::State::Prepared => "prepared: a copy that says so was cut before all was held",
        receipt::State::Aborted => {
            "aborted: that hold failed before all was held; a copy that says so was cut after it"
        }
    };
    Ok(Answer {
        document: json!({
            "root": root,
            "state": found.sector.state.to_string(),
            "hold_id": found.sector.hold_id,
            "uuid": found.sector.fs_uuid,
            "boot_id": found.sector.boot_id,
            "receipt": found.record,
        }),
        table,
        sentence: sentence.into(),
        exit: Exit::Done,
    })
}

/// `receipt --report FILE`: a report that was saved, told as `history ID` tells one.
fn report(args: &cli::Receipt, file: &Path) -> Result<Answer, Failure> {
    let report = saved(file)?;
    if let Some(svg) = &args.svg {
        return picture::drawn(&report, svg);
    }
    Ok(Answer {
        document: json!({"report": json::to_json(&report)}),
        table: show::steps_and_gaps(&report) + &picture::here(&report),
        sentence: show::ended(&report),
        exit: Exit::Done,
    })
}

/// A hold's report as somebody saved it.
fn saved(path: &Path) -> Result<proto::Report, Failure> {
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::io(format!("read the hold record {}", path.display()), &error))?;
    json::record(&text).map_err(|error| {
        let message = format!("failed to use {}: {error}", path.display());
        Failure::local(RefusalKind::InvalidArgument, reason::MALFORMED, message)
    })
}

/// `verify [DIR…] [--record FILE]`: exit 0, 1 or 3 as the contract says.
///
/// # Errors
/// A directory or the record cannot be read.
pub fn verify(args: &cli::Verify) -> Result<Answer, Failure> {
    let record = args.record.as_deref().map(saved).transpose()?;
    let recall = recalled(args);
    let (paths, host) = match args.paths.is_empty() {
        true => (
            verify::mounted().map_err(|error| Failure::io("list the mounts", &error))?,
            Host::Restored { recall: &recall },
        ),
        false => (args.paths.clone(), Host::Elsewhere),
    };
    let mut verification = verify::verify(&paths, record.as_ref(), host).map_err(|refused| refusal(&refused))?;
    if host.is_restored() {
        ask_servers(args, &mut verification)?;
    }
    let exit = match verification.exit_code(record.is_some()) {
        0 => Exit::Done,
        1 => Exit::Failed,
        _ => Exit::Broken,
    };
    Ok(Answer {
        document: verification.to_json(),
        table: lines(&verification),
        sentence: sentence(&verification, exit),
        exit,
    })
}

/// On a restored machine the databases of the receipt are asked, too.
fn ask_servers(args: &cli::Verify, verification: &mut Verification) -> Result<(), Failure> {
    let Some((told, prepared)) = verification.told().map(|(told, prepared)| (told.clone(), prepared)) else {
        return Ok(());
    };
    if verify::servers::expected(&told).is_empty() {
        return Ok(());
    }
    let settings = super::settings(args.config.config.as_deref())?.settings;
    let surroundings = Surroundings::read(Path::new("/"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::io("ask the databases", &error))?;
    let asked = verify::servers::compare(&settings, &surroundings, &told, prepared);
    let (compared, problems) = runtime.block_on(asked);
    runtime.shutdown_background();
    verification.compared(compared);
    verification.problems.extend(problems);
    Ok(())
}

fn refusal(refused: &Refused) -> Failure {
    let message = format!("failed to {refused}");
    let failure = match refused {
        Refused::Unreadable { source, .. } => {
            let failure = Failure::io("look", source);
            match source.kind() {
                std::io::ErrorKind::PermissionDenied => Failure { message, ..failure },
                _ => Failure::local(RefusalKind::InvalidArgument, reason::MALFORMED, message),
            }
        }
        Refused::NoSource(_) => Failure::local(RefusalKind::InvalidArgument, reason::MALFORMED, message),
        Refused::NotRoot(_) => Failure::local(RefusalKind::PermissionDenied, reason::NOT_PERMITTED, message),
        Refused::Wrapped { .. } => Failure::local(RefusalKind::FailedPrecondition, "NOT_A_RAW_IMAGE", message),
        Refused::Mounted { .. } | Refused::SameBtrfs { .. } => {
            Failure::local(RefusalKind::FailedPrecondition, "IN_USE", message)
        }
    };
    failure.hint(refused.hint())
}

/// Receipts that were rewritten on this machine in this boot: what each copy was worth when the daemon found it.
fn recalled(args: &cli::Verify) -> impl Fn(&str, &receipt::Sector) -> Option<(Grade, String)> + use<> {
    let run = super::settings(args.config.config.as_deref()).map(|loaded| loaded.settings.paths.run).ok();
    let boot_id = Instance::read(Path::new("/")).boot_id.unwrap_or_default();
    move |mount, sector| {
        let (grade, why) = restored::said_before(run.as_ref()?, mount, sector, &boot_id)?;
        Some((Grade::named(&grade)?, format!("when this machine was started from it: {why}")))
    }
}

fn lines(verification: &Verification) -> String {
    let rows = verification.filesystems.iter().map(|f| vec![f.name.clone(), f.grade.to_string(), f.why.clone()]);
    let mut out = words::table(&["FILE SYSTEM", "GRADE", "WHY"], rows);
    for claimed in &verification.claims {
        let limits = match claimed.limits.is_empty() {
            true => String::new(),
            false => format!(" (limited by {})", claimed.limits.join(", ")),
        };
        let claim = verify::claims::name(claimed.claim);
        out.push_str(&format!("{} ({}): {claim}{limits}; {}\n", claimed.name, claimed.engine, claimed.why));
    }
    for compared in &verification.databases {
        out.push_str(&format!("{}\n", compared.sentence()));
    }
    for problem in &verification.problems {
        out.push_str(&format!("! {}\n", problem.message));
        if !problem.hint.is_empty() {
            out.push_str(&format!("  hint: {}\n", problem.hint));
        }
    }
    if verification.level != "none" {
        out.push_str(&format!("level: {}: {}\n", verification.level, verification.level_why));
    }
    out
}

fn sentence(verification: &Verification, exit: Exit) -> String {
    match exit {
        Exit::Done => format!("{}: these copies were cut during the hold {}", verification.grade, verification.hold_id),
        Exit::Failed => "none: no receipt was found, so nothing is known of how these copies were cut".into(),
        Exit::Malformed | Exit::Broken | Exit::Refused | Exit::Unreachable | Exit::NotPermitted => {
            format!("{}: not proven to be cut during one hold; crash-consistent at best", verification.grade)
        }
    }
}

fn directory(dir: &Path) -> Result<&Path, Failure> {
    if dir.is_dir() {
        return Ok(dir);
    }
    let message = format!("failed to look at {}: it is not a directory", dir.display());
    Err(Failure::local(RefusalKind::InvalidArgument, reason::MALFORMED, message)
        .hint("give the root of a mounted file system; mount a copy with -o ro,noload (XFS: ro,norecovery) first"))
}
