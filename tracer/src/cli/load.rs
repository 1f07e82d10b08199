//! A capture to a snapshot, from a file or standard input.

use std::{io, path::Path};

use crate::{
    capture::{OpenError, Reader},
    error::UserError,
    profile::{ProfileSettings, Snapshot},
    replay::Replay,
};

/// Reads a whole capture; `-` is standard input.
pub(super) fn snapshot(path: &Path) -> Result<Snapshot, UserError> {
    let fail = |error: OpenError| {
        let hint = error.hint();
        let user = UserError::new(format!("cannot read {}", path.display())).caused_by(error);
        match hint {
            Some(hint) => user.hint(hint),
            None => user,
        }
    };
    if path == Path::new("-") {
        let reader = Reader::new(io::stdin().lock()).map_err(fail)?;
        return Ok(read(reader));
    }
    Ok(read(Reader::open(path).map_err(fail)?))
}

fn read<R: io::Read>(mut reader: Reader<R>) -> Snapshot {
    let mut replay = Replay::new(ProfileSettings::default());
    for block in reader.by_ref() {
        replay.block(block);
    }
    replay.snapshot(reader.ended())
}
