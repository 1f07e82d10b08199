//! A capture that is written anew as a whole, again and again, and always there as a whole.
//!
//! Apart from `write`, which appends. A new one is written beside the old one and takes its name once it is complete, so
//! that whoever dies when, the file is one of the two. Where there is no name to take (a pipe, a device), only the last
//! one is written. Invariant: what is replaced is the regular file that was made at the start.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use super::{
    context::{End, EndReason, Meta},
    write::{Overwrite, WriteError, Writer},
};
use crate::units::ByteCount;

/// A capture that is replaced.
pub struct Replaced {
    place: Place,
    limit: Option<ByteCount>,
    /// The one that is in place, or the stream.
    newest: Option<Writer>,
}

enum Place {
    /// A file, and the name under which a new one is written.
    File { path: PathBuf, beside: PathBuf },
    /// Written once, at the end.
    Stream,
}

/// How the last one was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Bytes of it.
    pub written: ByteCount,
    /// Whether it would have passed the limit, so that it is the one before.
    pub full: bool,
}

impl Replaced {
    /// Makes the file, in which nothing is but `meta` until the first [`Replaced::put`].
    pub fn create(path: &Path, overwrite: Overwrite, meta: &Meta) -> Result<Self, WriteError> {
        let writer = Writer::create(path, overwrite, meta)?;
        // What a link leads to is replaced, not the link.
        let real = fs::canonicalize(path).ok().filter(|path| path.is_file());
        let place = match real.filter(|_| path != Path::new("-")) {
            Some(path) => {
                let mut beside = OsString::from(&path);
                beside.push(format!(".{}.part", std::process::id()));
                Place::File {
                    path,
                    beside: beside.into(),
                }
            }
            None => Place::Stream,
        };
        Ok(Self {
            place,
            limit: None,
            newest: Some(writer),
        })
    }

    /// Bounds the file: a larger one does not take the place of the one before.
    pub fn set_limit(&mut self, limit: Option<ByteCount>) {
        self.limit = limit;
    }

    /// Whether anything is written before the end.
    pub fn can_be_replaced(&self) -> bool {
        matches!(self.place, Place::File { .. })
    }

    /// Writes a new one with what `fill` puts into it, which takes the place of the one before. On an error that one
    /// stays.
    pub fn put(
        &mut self,
        meta: &Meta,
        fill: impl FnOnce(&mut Writer) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        let Place::File { path, beside } = &self.place else {
            return Ok(());
        };
        let made = make(beside, meta, self.limit, fill).and_then(|writer| {
            fs::rename(beside, path).map_err(|source| WriteError::Write {
                path: path.clone(),
                source,
            })?;
            Ok(writer)
        });
        match made {
            Ok(writer) => {
                self.newest = Some(writer);
                Ok(())
            }
            Err(error) => {
                // It is of no use to anybody, and the room it takes may be needed.
                let _ = fs::remove_file(beside);
                Err(error)
            }
        }
    }

    /// Writes the last one, with its end. If there is no room for it, the one before gets the end, which says so.
    pub fn finish(
        mut self,
        meta: &Meta,
        fill: impl FnOnce(&mut Writer) -> Result<(), WriteError>,
        mut end: End,
    ) -> Result<Finished, WriteError> {
        let filled = match self.place {
            Place::File { .. } => self.put(meta, fill),
            Place::Stream => match &mut self.newest {
                Some(writer) => {
                    writer.set_limit(self.limit);
                    writer.meta(meta).and_then(|()| fill(writer))
                }
                None => Ok(()),
            },
        };
        let full = matches!(filled, Err(WriteError::Full { .. }));
        if full {
            end.reason = EndReason::Full;
        }
        if let Err(error) = &filled {
            end.message = error.to_string();
        }
        let written = match self.newest.take() {
            Some(writer) => writer.finish(&[], end)?,
            None => ByteCount(0),
        };
        match filled {
            Err(error) if !full => Err(error),
            _ => Ok(Finished { written, full }),
        }
    }
}

/// A new one that takes no place yet.
fn make(
    beside: &Path,
    meta: &Meta,
    limit: Option<ByteCount>,
    fill: impl FnOnce(&mut Writer) -> Result<(), WriteError>,
) -> Result<Writer, WriteError> {
    // The name is ours, this process's number is in it: what is there is of an earlier process of that number.
    let _ = fs::remove_file(beside);
    let mut writer = Writer::create(beside, Overwrite::Refuse, meta)?;
    writer.set_limit(limit);
    fill(&mut writer)?;
    Ok(writer)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

    use super::{
        super::{Block, Ended, Reader, Tallies},
        *,
    };

    fn names(text: &str) -> Tallies {
        Tallies::Names(vec![text.to_owned()])
    }

    /// What is in the file, and how it ended.
    fn read(path: &Path) -> (Vec<Tallies>, Ended) {
        let mut reader = Reader::open(path).unwrap();
        let parts = reader.by_ref().filter_map(|block| match block {
            Block::Tallies(part) => Some(part),
            _ => None,
        });
        (parts.collect(), reader.ended().unwrap().clone())
    }

    #[test]
    fn each_one_takes_the_place_of_the_one_before_and_nothing_else_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let mut replaced = Replaced::create(&path, Overwrite::Refuse, &Meta::default()).unwrap();
        assert_eq!(read(&path).0, []);
        for text in ["first", "second"] {
            replaced
                .put(&Meta::default(), |writer| writer.tallies(&names(text)))
                .unwrap();
            let (parts, ended) = read(&path);
            assert_eq!(parts, [names(text)]);
            assert!(matches!(ended, Ended::Cut { .. }));
        }
        let failed = replaced.put(&Meta::default(), |_| {
            Err(WriteError::Broken {
                path: PathBuf::from("x"),
            })
        });
        assert!(failed.is_err());
        assert_eq!(read(&path).0, [names("second")]);
        replaced
            .finish(
                &Meta::default(),
                |writer| writer.tallies(&names("last")),
                End::default(),
            )
            .unwrap();
        assert_eq!(read(&path), (vec![names("last")], Ended::Complete));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_passes_the_limit_leaves_the_one_before_with_an_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let mut replaced = Replaced::create(&path, Overwrite::Refuse, &Meta::default()).unwrap();
        replaced.set_limit(Some(ByteCount(70_000)));
        replaced
            .put(&Meta::default(), |writer| writer.tallies(&names("fits")))
            .unwrap();
        let mut seed = 1_u32;
        let noise: String = (0..60_000)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                char::from(b' ' + u8::try_from(seed >> 26).unwrap())
            })
            .collect();
        let finished = replaced
            .finish(
                &Meta::default(),
                |writer| writer.tallies(&names(&noise)),
                End::default(),
            )
            .unwrap();
        assert!(finished.full && finished.written.get() < 70_000);
        assert_eq!(read(&path), (vec![names("fits")], Ended::Complete));
    }

    #[test]
    fn a_link_stays_a_link_and_a_device_a_device() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("a"), directory.path().join("link"));
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let mut replaced = Replaced::create(&link, Overwrite::Force, &Meta::default()).unwrap();
        replaced
            .put(&Meta::default(), |writer| writer.tallies(&names("x")))
            .unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(read(&path).0, [names("x")]);
        let device = Replaced::create(Path::new("/dev/null"), Overwrite::Force, &Meta::default()).unwrap();
        assert!(!device.can_be_replaced());
    }
}
