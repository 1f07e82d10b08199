//! Standard streams and files: results to standard output or a file, everything else to standard error.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, IsTerminal as _, Write},
    path::Path,
};

use crate::error::UserError;

/// Says something that is no result.
pub(super) fn say(text: &str) {
    // If standard error is closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Columns of the terminal that standard output is, if it is one.
pub(super) fn width() -> Option<u16> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    rustix::termios::tcgetwinsize(&stdout)
        .ok()
        .map(|size| size.ws_col)
        .filter(|&columns| columns > 0)
}

/// Writes a result with `write`. A reader that has seen enough (a closed pipe) is no error.
pub(super) fn write(
    to: Option<&Path>,
    force: bool,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), UserError> {
    let to = to.filter(|path| *path != Path::new("-"));
    let (result, name) = match to {
        None => {
            let mut out = BufWriter::new(io::stdout().lock());
            (
                write(&mut out).and_then(|()| out.flush()),
                "standard output".to_owned(),
            )
        }
        Some(path) => {
            let mut out = BufWriter::new(create(path, force)?);
            (
                write(&mut out).and_then(|()| out.flush()),
                path.display().to_string(),
            )
        }
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe && to.is_none() => Ok(()),
        Err(error) => Err(UserError::new(format!("cannot write to {name}")).caused_by(error)),
        Ok(()) => Ok(()),
    }
}

fn create(path: &Path, force: bool) -> Result<File, UserError> {
    let mut options = OpenOptions::new();
    options.write(true);
    if force {
        options.create(true).truncate(true);
    } else {
        options.create_new(true);
    }
    options.open(path).map_err(|error| {
        let exists = error.kind() == io::ErrorKind::AlreadyExists;
        let error = UserError::new(format!("cannot create {}", path.display())).caused_by(error);
        if exists {
            error.hint("-f replaces it, -o names another file")
        } else {
            error
        }
    })
}
