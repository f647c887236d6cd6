//! A writer that keeps accounts: a ledger it appends to, each line acknowledged only when it is on the disk, and a file it
//! replaces by renaming. It tells, through memory, how far it has come, so that a copy can be checked against what had been
//! acknowledged when it was cut.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    process::ExitCode,
    thread,
    time::Duration,
};

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accounts {
    /// lines of the ledger
    pub lines: u64,
    /// the number in the file that is replaced
    pub replaced: u64,
}

/// The writer process: until killed.
pub fn keep(dir: &Path, progress: &Path) -> ExitCode {
    let published = File::create(progress).expect("tmpfs");
    let publish = |word: u64, at: u64| published.write_all_at(&word.to_ne_bytes(), at).expect("tmpfs has room");
    let ledger = OpenOptions::new().create(true).append(true).custom_flags(nix::libc::O_DSYNC).open(dir.join("ledger"));
    let mut ledger = ledger.expect("the file system is writable at first");
    fs::create_dir_all(dir.join("churn")).expect("writable");
    for n in 1_u64.. {
        ledger.write_all(line(n).as_bytes()).expect("append");
        publish(n, 0);
        // these wait in memory for the next commit
        let churn = dir.join(format!("churn/{}", n % 50));
        let _ = fs::remove_file(&churn);
        fs::write(&churn, n.to_string().repeat(500)).expect("write");
        fs::write(dir.join("new"), line(n)).expect("write");
        fs::rename(dir.join("new"), dir.join("current")).expect("rename");
        publish(n, 8);
        thread::sleep(Duration::from_micros(500));
    }
    ExitCode::SUCCESS
}

fn line(n: u64) -> String {
    format!("{n:011}\n")
}

impl Accounts {
    /// What was acknowledged until now.
    pub fn acknowledged(progress: &Path) -> Accounts {
        let bytes = fs::read(progress).unwrap_or_default();
        let word =
            |at: usize| bytes.get(at..at + 8).map_or(0, |b| u64::from_ne_bytes(b.try_into().expect("eight bytes")));
        Accounts { lines: word(0), replaced: word(8) }
    }

    /// What a copy has; an error says what is wrong with its ledger.
    pub fn of_copy(dir: &Path) -> Result<Accounts, String> {
        let ledger = fs::read(dir.join("ledger")).map_err(|e| format!("the ledger cannot be read: {e}"))?;
        let mut lines = 0;
        for (found, n) in ledger.chunks(12).zip(1_u64..) {
            if found != line(n).as_bytes() {
                return Err(format!("line {n} of the ledger is torn: {:?}", String::from_utf8_lossy(found)));
            }
            lines = n;
        }
        let current = fs::read_to_string(dir.join("current")).map_err(|e| format!("`current` cannot be read: {e}"))?;
        let replaced = current.trim().parse().map_err(|_| format!("`current` has {current:?}"))?;
        Ok(Accounts { lines, replaced })
    }
}
