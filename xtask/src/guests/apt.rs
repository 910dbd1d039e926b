//! Files out of the distribution's packages, without installing them and without root.
//!
//! The system's package lists serve if they can. Where they are missing or too old (a fresh
//! container, a kernel that has been superseded), private lists are fetched below `target/`: no
//! rights are needed and the system stays as it was.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::child::{self, Output};

/// Reading lists and unpacking.
const LOCAL_LIMIT: Duration = Duration::from_secs(120);
/// Fetching package lists; a few servers that do not answer cost `NETWORK`'s time each.
const UPDATE_LIMIT: Duration = Duration::from_secs(180);
/// Downloading one package, 70 MB for the general kernel.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(900);
/// A server that does not answer must not look like a hang.
const NETWORK: &[&str] =
    &["Acquire::http::Timeout=10", "Acquire::https::Timeout=10", "Acquire::Retries=1"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lists {
    System,
    Private,
}

/// The package manager, with a folder for what it must keep on our behalf.
pub struct Apt {
    folder: PathBuf,
    /// Whether the private lists could be fetched, once that has been tried.
    private: OnceCell<std::result::Result<(), String>>,
}

impl Apt {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, private: OnceCell::new() }
    }

    /// Returns the first package with the prefix that the first known one of `names` depends on:
    /// what a package such as `linux-image-cloud-amd64` stands for today.
    pub fn first_dependency(&self, names: &[&str], prefix: &str) -> Result<String> {
        self.with_lists(|lists| {
            let stanza = names.iter().find_map(|name| self.show(name, lists).ok());
            let stanza = stanza.ok_or_else(|| anyhow!("no package {}", names.join(" or ")))?;
            dependency(&stanza, prefix)
                .ok_or_else(|| anyhow!("{} depends on no {prefix}*", names[0]))
        })
    }

    /// Downloads a package and returns the one file in it that matches the pattern.
    pub fn extract(&self, package: &str, pattern: &str) -> Result<Vec<u8>> {
        Ok(self.extract_all(package, &[pattern.to_owned()])?.concat())
    }

    /// Downloads a package and returns the one file in it for each pattern.
    pub fn extract_all(&self, package: &str, patterns: &[String]) -> Result<Vec<Vec<u8>>> {
        let archive = self.with_lists(|lists| self.download(package, lists))?;
        let files = patterns.iter().map(|pattern| member(&archive, pattern));
        let files = files.collect::<Result<_>>()?;
        fs::remove_file(&archive).ok();
        Ok(files)
    }

    /// Tries with the system's lists, then with private ones.
    fn with_lists<T>(&self, attempt: impl Fn(Lists) -> Result<T>) -> Result<T> {
        if self.private.get().is_none()
            && let Ok(value) = attempt(Lists::System)
        {
            return Ok(value);
        }
        let updated =
            self.private.get_or_init(|| self.update().map_err(|error| format!("{error:#}")));
        updated.clone().map_err(|reason| anyhow!(reason))?;
        // apt-get update succeeds without a network too, and then there is no package.
        attempt(Lists::Private).context("not to be had by apt; is there a network?")
    }

    fn update(&self) -> Result<()> {
        eprintln!("xtask: fetching package lists into {}", self.folder.display());
        for folder in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.folder.join(folder))?;
        }
        let mut command = self.command("apt-get", Lists::Private);
        let status = child::run(command.arg("update").stdin(Stdio::null()), UPDATE_LIMIT)?;
        ensure!(status.success(), "`apt-get update` ended with {status}");
        Ok(())
    }

    fn show(&self, package: &str, lists: Lists) -> Result<String> {
        let mut command = self.command("apt-cache", lists);
        command.args(["show", "--no-all-versions", package]);
        let finished = child::capture(&mut command, Output::Kept, LOCAL_LIMIT)?;
        if !finished.status.success() {
            bail!("apt-cache knows no package {package}");
        }
        Ok(finished.text)
    }

    fn download(&self, package: &str, lists: Lists) -> Result<PathBuf> {
        let stanza = self.show(package, lists)?;
        let size: u64 = field(&stanza, "Size").and_then(|size| size.parse().ok()).unwrap_or(0);
        let version = field(&stanza, "Version").unwrap_or("?");
        eprintln!("xtask: downloading {package} {version} ({} KiB)", size / 1024);
        let folder = self.folder.join("incoming");
        fs::remove_dir_all(&folder).ok();
        fs::create_dir_all(&folder)?;
        let mut command = self.command("apt-get", lists);
        command.args(["download", package]).current_dir(&folder).stdin(Stdio::null());
        let status = child::run(&mut command, DOWNLOAD_LIMIT)?;
        ensure!(status.success(), "`apt-get download {package}` ended with {status}");
        let archive = fs::read_dir(&folder)?.next().context("apt-get downloaded nothing")??;
        Ok(archive.path())
    }

    fn command(&self, program: &str, lists: Lists) -> Command {
        let mut options: Vec<String> = NETWORK.iter().map(|&option| option.to_owned()).collect();
        // As root apt would drop its rights and then fail to write below our target folder.
        options.push("APT::Sandbox::User=root".to_owned());
        if lists == Lists::Private {
            let folder = self.folder.display();
            options.push(format!("Dir::State={folder}/state"));
            options.push("Dir::State::status=/var/lib/dpkg/status".to_owned());
            options.push(format!("Dir::Cache={folder}/cache"));
        }
        let mut command = Command::new(program);
        // The fields that we read are English only without a locale.
        command.env("LC_ALL", "C");
        command.args(options.iter().flat_map(|option| ["-o", option]));
        command
    }
}

/// The value of a field in a package's description.
fn field<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
    stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
}

/// The first name with the prefix in a package's `Depends` field.
fn dependency(stanza: &str, prefix: &str) -> Option<String> {
    let names = field(stanza, "Depends")?.split([',', '|']);
    let mut names = names.filter_map(|entry| entry.split_whitespace().next());
    names.find(|name| name.starts_with(prefix)).map(str::to_owned)
}

/// Reads the one file that matches a pattern out of a package.
fn member(archive: &Path, pattern: &str) -> Result<Vec<u8>> {
    let folder = archive.with_extension("unpacked");
    fs::create_dir_all(&folder)?;
    let script = r#"dpkg-deb --fsys-tarfile "$1" | tar -x -f - -C "$2" --wildcards "$3""#;
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).args([archive, &folder]).arg(pattern);
    let finished = child::capture(&mut command, Output::Kept, LOCAL_LIMIT)?;
    let file = only_file(&folder).with_context(|| {
        format!("no {pattern} in {}: {}", archive.display(), finished.text.trim())
    })?;
    let bytes = fs::read(file)?;
    fs::remove_dir_all(&folder).ok();
    Ok(bytes)
}

fn only_file(folder: &Path) -> Option<PathBuf> {
    fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() { only_file(&path) } else { Some(path) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANZA: &str = "Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\n\
        Depends: kmod (>= 1), linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\nSize: 1484\n";

    #[test]
    fn the_real_kernel_is_found_behind_the_package_that_stands_for_it() {
        let name = dependency(STANZA, "linux-image-");
        assert_eq!(name.as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        assert_eq!(field(STANZA, "Size"), Some("1484"));
        assert_eq!(field(STANZA, "Siz"), None);
    }
}
