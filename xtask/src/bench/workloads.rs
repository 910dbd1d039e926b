//! The workloads: scripts for busybox, the same for the host and for every guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::child;
use crate::process::processor_time;

/// A script whose output is the same everywhere.
pub struct Workload {
    pub name: &'static str,
    script: &'static str,
}

/// Each takes the host half a second or so.
pub const WORKLOADS: &[Workload] = &[
    Workload { name: "sha256sum", script: "head -c 64000000 /dev/zero | sha256sum\n" },
    Workload { name: "gzip", script: "seq 1 400000 | gzip | wc -c\n" },
    Workload {
        name: "sort",
        script: "seq 1 120000 | awk '{ print ($1 * 7919) % 1000003 }' | sort -n | md5sum\n",
    },
    Workload {
        name: "awk",
        script: "awk 'BEGIN {\n\
            for (i = 0; i < 600000; i++) { x = (x * 75 + 74) % 65537; s += x }\n\
            print s }'\n",
    },
    Workload { name: "grep", script: "seq 1 600000 | grep -c '[13579]7.*3$'\n" },
    Workload {
        name: "shell",
        script: "i=0; s=0\n\
            while [ $i -lt 120000 ]; do i=$((i + 1)); s=$(((s + i * i) % 65521)); done\n\
            echo $s\n",
    },
    Workload {
        name: "fork",
        script: "i=0\nwhile [ $i -lt 500 ]; do sh -c :; i=$((i + 1)); done\necho $i\n",
    },
    Workload {
        name: "files",
        script: "mkdir files; i=0\n\
            while [ $i -lt 8000 ]; do echo $i > files/$i; i=$((i + 1)); done\n\
            find files -type f | wc -l\n\
            cat files/* | md5sum\n\
            rm -r files\n",
    },
];

/// What a workload wrote, and the processor time it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    pub output: String,
    pub time: Duration,
}

impl Measured {
    /// The shortest of several runs, which all must write the same.
    pub fn shortest(runs: u32, mut run: impl FnMut() -> Result<Self>) -> Result<Self> {
        let mut best = run()?;
        for _ in 1..runs {
            let other = run()?;
            ensure!(other.output == best.output, "{:?}, then {:?}", best.output, other.output);
            best.time = best.time.min(other.time);
        }
        Ok(best)
    }
}

impl Workload {
    /// The script as a file of the guest: its path from the root, and its contents.
    pub fn file(&self) -> (String, &'static str) {
        (format!("bench/{}", self.name), self.script)
    }

    /// What runs it in the guest.
    pub fn line(&self) -> String {
        format!("(cd /tmp; sh /bench/{})", self.name)
    }
}

/// A folder of the host in which workloads run as they do in the guest. It is removed when this is
/// dropped.
pub struct Host {
    folder: PathBuf,
    busybox: PathBuf,
}

impl Host {
    pub fn new(busybox: &Path) -> Result<Self> {
        // As in the guest, where /tmp is memory.
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.into() } else { std::env::temp_dir() };
        let folder = parent.join(format!("volvelle-bench-{}", std::process::id()));
        let host = Self { folder, busybox: busybox.into() };
        for name in ["bin", "scripts", "tmp"] {
            let folder = host.folder.join(name);
            fs::create_dir_all(&folder)
                .with_context(|| format!("creating {}", folder.display()))?;
        }
        let mut install = Command::new(busybox);
        install.args(["--install", "-s"]).arg(host.folder.join("bin"));
        child::check(&mut install, Duration::from_secs(20))?;
        Ok(host)
    }

    /// Runs a workload.
    pub fn run(&self, workload: &Workload) -> Result<Measured> {
        let script = self.folder.join("scripts").join(workload.name);
        fs::write(&script, workload.script)?;
        let mut command = Command::new(&self.busybox);
        command.arg("sh").arg(&script).current_dir(self.folder.join("tmp"));
        command.env_clear().env("PATH", self.folder.join("bin"));
        let (finished, time) = timed(&mut command)?;
        ensure!(finished.status.success(), "`{}` ended with {}", workload.name, finished.status);
        Ok(Measured { output: String::from_utf8_lossy(&finished.stdout).into_owned(), time })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// Runs a child without input; the time is that of the child and of what it waited for.
fn timed(command: &mut Command) -> Result<(std::process::Output, Duration)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let child = command.spawn().with_context(|| child::describe(command))?;
    let id = child.id();
    let pid = Pid::from_child(&child);
    // The kernel knows the time until the child has been waited for, so somebody must look first:
    // it writes less than a pipe holds.
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
    let time = processor_time(id)?;
    Ok((child.wait_with_output()?, time))
}

/// Time since `started` in seconds, for a person.
pub fn seconds(started: Instant) -> String {
    format!("{:.0} s", started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_child_and_its_children_is_known() {
        let busy = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
        let mut command = Command::new("sh");
        command.args(["-c", &format!("sh -c '{busy}; echo done'; {busy}")]);
        let (output, time) = timed(&mut command).unwrap();
        assert_eq!(output.stdout, b"done\n");
        assert!(time > Duration::from_millis(10), "{time:?}");
    }

    #[test]
    fn the_shortest_run_counts_and_all_must_write_the_same() {
        let measured =
            |output: &str, ms| Measured { output: output.into(), time: Duration::from_millis(ms) };
        let mut times = [30, 10, 20].into_iter();
        let best = Measured::shortest(3, || Ok(measured("a", times.next().unwrap()))).unwrap();
        assert_eq!(best, measured("a", 10));
        let mut outputs = ["a", "b"].into_iter();
        let mixed = Measured::shortest(2, || Ok(measured(outputs.next().unwrap(), 1)));
        assert!(mixed.is_err());
    }
}
