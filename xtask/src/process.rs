//! Running other programs: every command is shown before it runs, and a failure names it.

use std::{
    fs::File,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// The command as one would type it (without its environment).
pub(crate) fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Runs a command with our standard streams; fails unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("$ {}", shown(command));
    let status = command
        .status()
        .with_context(|| format!("cannot run `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs a command and returns its standard output, trimmed; its standard error matters only if it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run `{}`", shown(command)))?;
    if !output.status.success() {
        bail!(
            "{}\n`{}` failed: {}",
            end_of(&output.stderr),
            shown(command),
            output.status
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs a command whose output matters only if it fails.
pub(crate) fn run_quietly(command: &mut Command) -> Result<()> {
    println!("$ {}", shown(command));
    let output = command
        .output()
        .with_context(|| format!("cannot run `{}`", shown(command)))?;
    if !output.status.success() {
        bail!(
            "{}\n`{}` failed: {}",
            end_of(&[output.stdout, output.stderr].concat()),
            shown(command),
            output.status
        );
    }
    Ok(())
}

/// The last 30 lines of what a command wrote.
fn end_of(written: &[u8]) -> String {
    let text = String::from_utf8_lossy(written);
    let lines: Vec<&str> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(30)..)
        .unwrap_or_default()
        .join("\n")
}

/// Runs a long command with its output in a file.
pub(crate) fn run_logged(command: &mut Command, log: &Path) -> Result<()> {
    println!("$ {} > {}", shown(command), log.display());
    let file = || {
        File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write {}", log.display()))
    };
    let status = command
        .stdin(Stdio::null())
        .stdout(file()?)
        .stderr(file()?)
        .status()
        .with_context(|| format!("cannot run `{}`", shown(command)))?;
    if !status.success() {
        bail!(
            "`{}` failed: {status}\nhint: its output is in {}",
            shown(command),
            log.display()
        );
    }
    Ok(())
}
