//! TARGET, for every command that takes one: words to pids and selections, wrong words to errors with a hint.

use super::args::Target as Typed;
use crate::{
    discover::{Selection, Words, process},
    error::{Exit, UserError},
    record::Target,
    units::Pid,
};

/// Whether anything was given.
pub(super) fn is_given(typed: &Typed) -> bool {
    !(typed.pid.is_empty() && words_of(typed).is_none())
}

/// What was given, without the process ids.
pub(super) fn selection(typed: &Typed) -> Result<Selection, UserError> {
    Selection::resolve(words_of(typed).unwrap_or_default()).map_err(|error| {
        let hint = error.hint();
        UserError::new("cannot tell which processes are meant")
            .caused_by(error)
            .hint(hint)
    })
}

/// What is to be recorded.
pub(super) fn to_record(typed: &Typed) -> Result<Target, UserError> {
    let selection = selection(typed)?;
    if typed.pid.is_empty() {
        return Ok(if selection.is_empty() {
            Target::WholeHost
        } else {
            Target::Selected(selection)
        });
    }
    let mut pids: Vec<Pid> = typed.pid.iter().map(|&pid| Pid(pid)).collect();
    // One that is gone is told apart later.
    pids.retain(|&pid| process(pid).is_ok_and(|found| selection.matches(&found)) || selection.is_empty());
    if pids.is_empty() {
        return Err(
            UserError::new(format!("none of the given processes has {selection}"))
                .hint("every option that says which processes must be met; `pyrobe ps` takes the same ones")
                .exit_with(Exit::NothingToTrace),
        );
    }
    Ok(Target::Processes(pids))
}

fn words_of(typed: &Typed) -> Option<Words<'_>> {
    let words = Words {
        executables: &typed.exe,
        cgroups: &typed.cgroup,
        containers: &typed.container,
        users: &typed.user,
    };
    let all = [words.executables, words.cgroups, words.containers, words.users];
    all.iter().any(|words| !words.is_empty()).then_some(words)
}
