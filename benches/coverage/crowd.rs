//! Many processes with many open files: copies of one shell, which cost little memory, and all wait for the same pipe.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use nix::{sys::stat::Mode, unistd::mkfifo};

use crate::lab::{Lab, command, finish, until};

/// Each has ten: one on the disk in question, eight in memory, two of those for reading, and the pipe.
const SCRIPT: &str = "
i=0
while [ $i -lt $1 ]; do
    at=$2/$((i % $3 / 2 * 2))
    (
        exec 3>>$4/$((i % 50)) >$at/a 2>$at/b 4>$at/c 5>$at/d 6>$at/e 7>$at/f 8</etc/passwd 9</etc/group
        read -r end
    ) <$5 &
    i=$((i + 1))
done
wait
";

pub struct Crowd {
    shell: Child,
    /// they go when nobody can write to it any more
    pipe: Option<File>,
}

impl Crowd {
    /// Waits until all are there.
    pub fn gather(lab: &Lab, processes: usize, disk: &Path, places: &[PathBuf]) -> Crowd {
        let fifo = lab.memory_dir("crowd").join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).expect("memory");
        let pipe = File::options().read(true).write(true).open(&fifo).expect("it is ours");
        let shell = command("sh")
            .args(["-c", SCRIPT, "crowd", &processes.to_string()])
            .arg(places[0].parent().expect("below a directory"))
            .arg(places.len().to_string())
            .arg(disk)
            .arg(&fifo)
            .stdout(Stdio::null())
            .spawn()
            .expect("sh");
        let pid = shell.id();
        let there = || {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            let last = children.split_ascii_whitespace().last().map(|pid| format!("/proc/{pid}/fd/9"));
            children.split_ascii_whitespace().count() == processes && last.is_some_and(|fd| Path::new(&fd).exists())
        };
        assert!(until(Duration::from_secs(60), there), "the crowd does not gather");
        // the last one started may not be the last one ready
        std::thread::sleep(Duration::from_millis(500));
        Crowd { shell, pipe: Some(pipe) }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = finish(&mut self.shell, Duration::from_secs(20));
    }
}
