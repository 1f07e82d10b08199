//! Which processes of a capture a report is about.
//!
//! Apart from the reports, all of which take the same options. Invariant: a report on none is an error that says why.

use crate::{
    error::UserError,
    profile::{End, Snapshot},
    units::Pid,
};

/// What selects processes of a capture; all of them if nothing does.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Only this process; can be given several times
    #[arg(long, value_name = "PID")]
    pid: Vec<u32>,
    /// Only processes that still ran when the recording ended
    #[arg(long)]
    running: bool,
}

impl Which {
    /// Leaves the others out of a snapshot.
    pub(super) fn select(&self, snapshot: &mut Snapshot) -> Result<(), UserError> {
        let hint = "`pyrobe report stats` lists the processes of a capture and how they ended";
        for &pid in &self.pid {
            if !snapshot
                .processes
                .iter()
                .any(|process| process.info.key.pid == Pid(pid))
            {
                return Err(UserError::new(format!("process {pid} is not in this capture")).hint(hint));
            }
        }
        let had_any = !snapshot.processes.is_empty();
        snapshot.retain(|process| {
            (self.pid.is_empty() || self.pid.contains(&process.info.key.pid.get()))
                && (!self.running || process.info.end == End::Running)
        });
        if self.running && had_any && snapshot.processes.is_empty() {
            let error = UserError::new("none of the processes still ran when the recording ended");
            return Err(error.hint(format!("leave --running out; {hint}")));
        }
        Ok(())
    }
}
