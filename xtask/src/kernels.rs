//! `cargo xtask kernels`: pyrobe on older and newer kernels than this machine's, for the slow test tier.
//!
//! Debian's kernels are booted in qemu with a root file system in memory that holds pyrobe, two interpreters and the
//! end-to-end tests. The guest runs `doctor` and some of those tests, or, where the kernel is too old, sees that
//! pyrobe says so. Everything is emulated by default: that needs no rights, takes minutes, and what is too slow for it is
//! left to `cargo xtask test`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::{archive::Archive, process, setup, workspace};

mod guest;
mod verdict;

/// One kernel.
struct Kernel {
    /// Its series.
    name: &'static str,
    /// The release of Debian that has it.
    suite: &'static str,
    /// What pyrobe has to do on it.
    expected: Expected,
}

/// What pyrobe has to do on a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// Record, with this kind of links.
    Links(&'static str),
    /// Say that the kernel is too old.
    Refusal,
}

/// The series that Debian has, oldest first.
const KERNELS: &[Kernel] = &[
    // No attach cookies (5.15).
    Kernel {
        name: "5.10",
        suite: "bullseye",
        expected: Expected::Refusal,
    },
    Kernel {
        name: "6.1",
        suite: "bookworm",
        expected: Expected::Links("per-point"),
    },
    // Multi links (6.6), but no session links (6.13).
    Kernel {
        name: "6.12",
        suite: "trixie",
        expected: Expected::Links("multi"),
    },
    Kernel {
        name: "sid",
        suite: "sid",
        expected: Expected::Links("session"),
    },
];

/// The package that depends on the release's newest kernel, with few drivers and all of eBPF.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Debian packages, and what each is for.
const PACKAGES: &[(&str, &str)] = &[
    ("qemu-system-x86", "boots the kernels"),
    ("cpio", "root file system of the guests"),
    ("dpkg-dev", "unpacks the kernels"),
];

/// Seconds after which a guest is given up.
const PATIENCE: u32 = 1800;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which kernels; all of them if none is named
    names: Vec<String>,
    /// How qemu runs the guest: `tcg` emulates, `kvm` needs a /dev/kvm that works
    #[arg(long, default_value = "tcg")]
    accelerator: String,
}

/// Boots each kernel and judges what its guest said.
pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(name) = args
        .names
        .iter()
        .find(|name| KERNELS.iter().all(|kernel| kernel.name != *name))
    {
        let known: Vec<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
        bail!(
            "no kernel is named `{name}`\nhint: there are {}",
            known.join(", ")
        );
    }
    setup::install(PACKAGES)?;
    let directory = workspace::cache().join("kernels");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let root = guest::build(&directory)?;
    let mut failed = Vec::new();
    for kernel in KERNELS {
        if !args.names.is_empty() && args.names.iter().all(|name| name != kernel.name) {
            continue;
        }
        let start = Instant::now();
        let verdict = image(kernel, &directory).and_then(|image| {
            let said = boot(
                &image,
                &root,
                args,
                &directory.join(format!("{}.log", kernel.name)),
            )?;
            verdict::judge(&said, kernel.expected)
        });
        let seconds = start.elapsed().as_secs();
        match verdict {
            Ok(summary) => println!("{}: {summary} ({seconds} s)", kernel.name),
            Err(error) => {
                println!("{}: {error:#} ({seconds} s)", kernel.name);
                failed.push(kernel.name);
            }
        }
    }
    if !failed.is_empty() {
        bail!(
            "failed on {}\nhint: what the guests wrote is in {}",
            failed.join(", "),
            directory.display()
        );
    }
    Ok(())
}

/// The kernel's file; downloaded if there is none yet, or a newer one.
fn image(kernel: &Kernel, directory: &Path) -> Result<PathBuf> {
    let archive = Archive::open(kernel.suite)?;
    let mut package = the_dependency(&archive, META_PACKAGE, "linux-image-")?;
    // Newer releases have the file in a package of its own.
    if let Ok(binary) = the_dependency(&archive, &package, "linux-binary-") {
        package = binary;
    }
    let image = directory.join(&package);
    if image.is_file() {
        return Ok(image);
    }
    let work = directory.join(format!("{}.new", kernel.name));
    setup::remove(&work)?;
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let deb = archive.package(&package, &work)?;
    let unpacked = work.join("unpacked");
    process::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacked))?;
    let found = process::output(
        Command::new("find")
            .arg(&unpacked)
            .args(["-name", "vmlinuz*", "-type", "f"]),
    )?;
    let [found] = found.lines().collect::<Vec<_>>()[..] else {
        bail!("{package} has not one kernel but: {found}");
    };
    fs::copy(found, &image).with_context(|| format!("cannot copy {found}"))?;
    setup::remove(&work)?;
    Ok(image)
}

/// The package that `package` depends on and whose name starts with `prefix`.
fn the_dependency(archive: &Archive, package: &str, prefix: &str) -> Result<String> {
    let text = archive.query(&["depends", package])?;
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
        .with_context(|| format!("{package} does not depend on a {prefix}*"))
}

/// Runs a guest to its end; returns what it wrote to its console, which is kept in `log`.
fn boot(kernel: &Path, root: &Path, args: &Args, log: &Path) -> Result<String> {
    // `timeout`, so that a kernel that hangs is an error and not a wait without end.
    let mut command = Command::new("timeout");
    command
        .arg(PATIENCE.to_string())
        .args([
            "qemu-system-x86_64",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
        ])
        .args(["-display", "none", "-serial", "stdio", "-m", "3072", "-smp", "2"])
        .args(["-accel", &args.accelerator, "-cpu", "max"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(root)
        // Heap mode does not know what came in huge pages, which Debian's kernels give without being asked.
        .args([
            "-append",
            "console=ttyS0 loglevel=3 panic=-1 oops=panic transparent_hugepage=madvise",
        ]);
    fs::write(log, "").with_context(|| format!("cannot write {}", log.display()))?;
    process::run_logged(&mut command, log)?;
    let said = fs::read(log).with_context(|| format!("cannot read {}", log.display()))?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}
