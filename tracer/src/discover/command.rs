//! Which ELF file a command line will run, so that its image can be attached to before it starts.
//!
//! Follows what execvp(3) and the kernel do: the search of PATH, scripts that name an interpreter, interpreters
//! that are scripts. `env` is followed too, because nearly every Python script begins with it. What a shell
//! script goes on to run cannot be known; `well_known_images` is the answer to that.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access};

use super::library::{Search, libpython_of};

/// What the kernel reads of a script's first line: `BINPRM_BUF_SIZE`.
const FIRST_LINE: usize = 256;
/// Scripts followed; the kernel follows 5, and every `env` begins anew.
const MAX_SCRIPTS: usize = 16;

/// Why a command cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is not there.
    #[error("command not found: {}", name.display())]
    NotFound {
        /// As it was written.
        name: OsString,
    },
    /// It is there and may not be run.
    #[error("{} is not executable", path.display())]
    NotExecutable {
        /// Where it was found.
        path: PathBuf,
    },
    /// It could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Where it was found.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Scripts that run each other.
    #[error("{} leads from script to script without end", name.display())]
    Loop {
        /// As it was written.
        name: OsString,
    },
}

/// What a command will run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The ELF file, links not resolved.
    pub executable: PathBuf,
    /// The libpython that it will load.
    pub libpython: Option<PathBuf>,
    /// The scripts on the way to it, the command itself first.
    pub scripts: Vec<PathBuf>,
}

/// What `program`, the first word of a command line, will run with this `PATH`.
pub fn resolve_command(
    program: &OsStr,
    path: Option<&OsStr>,
    search: &Search,
) -> Result<Resolved, CommandError> {
    let mut executable = look_up(program, path)?;
    let mut scripts = Vec::new();
    loop {
        let first_line = read_start(&executable).map_err(|source| CommandError::Read {
            path: executable.clone(),
            source,
        })?;
        let next = match first_line.as_slice() {
            [0x7f, b'E', b'L', b'F', ..] => {
                let libpython = libpython_of(&executable, search).unwrap_or_default();
                return Ok(Resolved {
                    executable,
                    libpython,
                    scripts,
                });
            }
            [b'#', b'!', line @ ..] => match parse_interpreter(line) {
                Some((interpreter, argument)) => match env_program(&interpreter, argument.as_deref()) {
                    Some(program) => look_up(&program, path)?,
                    None => look_up(interpreter.as_os_str(), None)?,
                },
                None => return Err(CommandError::NotExecutable { path: executable }),
            },
            // execvp's answer to text that names no interpreter.
            _ => PathBuf::from("/bin/sh"),
        };
        scripts.push(std::mem::replace(&mut executable, next));
        if scripts.len() > MAX_SCRIPTS {
            return Err(CommandError::Loop {
                name: program.to_owned(),
            });
        }
    }
}

/// The file that execvp would run.
fn look_up(program: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, CommandError> {
    let not_found = || CommandError::NotFound {
        name: program.to_owned(),
    };
    if program.as_bytes().contains(&b'/') {
        let path = PathBuf::from(program);
        return match (path.is_file(), is_executable(&path)) {
            (true, true) => Ok(path),
            (false, _) if !path.exists() => Err(not_found()),
            _ => Err(CommandError::NotExecutable { path }),
        };
    }
    if program.is_empty() {
        return Err(not_found());
    }
    // What execvp uses when PATH is not set.
    let path = path.unwrap_or(OsStr::new("/bin:/usr/bin"));
    let mut refused = None;
    for dir in std::env::split_paths(path) {
        let file = if dir.as_os_str().is_empty() {
            Path::new(".").join(program)
        } else {
            dir.join(program)
        };
        if !file.is_file() {
            continue;
        }
        if is_executable(&file) {
            return Ok(file);
        }
        refused.get_or_insert(file);
    }
    Err(refused.map_or_else(not_found, |path| CommandError::NotExecutable { path }))
}

fn is_executable(path: &Path) -> bool {
    access(path, Access::EXEC_OK).is_ok()
}

/// The first bytes of a file.
pub(super) fn read_start(path: &Path) -> io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(FIRST_LINE);
    File::open(path)?
        .take(FIRST_LINE as u64)
        .read_to_end(&mut start)?;
    Ok(start)
}

/// Interpreter and its one argument from a script's first line, without `#!`, as the kernel splits it
/// (`load_script` in its `fs/binfmt_script.c`): the argument is the rest of the line, spaces and all.
fn parse_interpreter(line: &[u8]) -> Option<(PathBuf, Option<OsString>)> {
    let line = line
        .split(|byte| matches!(byte, b'\n' | b'\0'))
        .next()?
        .trim_ascii();
    let end = line
        .iter()
        .position(|byte| matches!(byte, b' ' | b'\t'))
        .unwrap_or(line.len());
    let (interpreter, argument) = line.split_at_checked(end)?;
    if interpreter.is_empty() {
        return None;
    }
    let argument = argument.trim_ascii();
    let argument = (!argument.is_empty()).then(|| OsString::from_vec(argument.to_vec()));
    Some((PathBuf::from(OsStr::from_bytes(interpreter)), argument))
}

/// The program that `env` will run when it is a script's interpreter; `None` if that is not `env`.
fn env_program(interpreter: &Path, argument: Option<&OsStr>) -> Option<OsString> {
    if interpreter.file_name() != Some(OsStr::new("env")) {
        return None;
    }
    let argument = argument?.as_bytes();
    let split = [b"-S".as_slice(), b"-vS", b"--split-string=", b"--split-string "]
        .iter()
        .find_map(|option| argument.strip_prefix(*option));
    let words = match split {
        Some(words) => split_words(words),
        // Without -S the whole rest is one word.
        None => vec![argument.to_vec()],
    };
    let mut words = words.into_iter();
    loop {
        let word = words.next()?;
        match word.as_slice() {
            b"-u" | b"--unset" | b"-C" | b"--chdir" => {
                words.next()?;
            }
            b"--" => return words.next().map(OsString::from_vec),
            // Other options, and variables.
            [b'-', ..] => {}
            word if word.contains(&b'=') => {}
            _ => return Some(OsString::from_vec(word)),
        }
    }
}

/// Words as `env -S` splits them: at white space, with quotes; its escapes are rare and taken literally.
fn split_words(text: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut quote = None;
    for byte in text {
        match (quote, byte) {
            (Some(open), byte) if open == *byte => quote = None,
            (None, b'\'' | b'"') => {
                quote = Some(*byte);
                word.get_or_insert_default();
            }
            (None, b' ' | b'\t') => words.extend(word.take()),
            (_, byte) => word.get_or_insert_default().push(*byte),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::discover::test_support::pyenv_version;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            fs::copy("/bin/cat", place.path("python3")).unwrap();
            place
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn script(&self, name: &str, text: &str) -> PathBuf {
            let path = self.path(name);
            fs::write(&path, text.replace("DIR", self.0.path().to_str().unwrap())).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        }

        fn resolve(&self, program: &str) -> Result<Resolved, CommandError> {
            let path = OsString::from(format!("/nowhere::{}", self.0.path().display()));
            resolve_command(OsStr::new(program), Some(&path), &Search::default())
        }

        /// A script of this text leads to this place's `python3`.
        fn leads_to_python(&self, text: &str) {
            self.script("script", text);
            let found = self.resolve("script").unwrap();
            assert_eq!(found.executable, self.path("python3"), "{text}");
            assert_eq!(found.scripts.first(), Some(&self.path("script")));
        }
    }

    #[test]
    fn scripts_lead_to_their_interpreter() {
        let place = Place::new();
        place.leads_to_python("#!DIR/python3\nprint()");
        place.leads_to_python("#! \tDIR/python3 -u -O \n");
        place.leads_to_python("#!DIR/python3");
        place.leads_to_python("#!/usr/bin/env python3\n");
        place.leads_to_python("#!/usr/bin/env -S python3 -u\n");
        place.leads_to_python("#!/usr/bin/env -S -i -u HOME A=\"x y\" 'python3' -u\n");
        place.leads_to_python("#!/usr/bin/env --split-string=python3 -u\n");
    }

    #[test]
    fn an_interpreter_can_be_a_script() {
        let place = Place::new();
        let inner = place.script("inner", "#!/usr/bin/env python3\n");
        place.leads_to_python("#!DIR/inner\n");
        assert_eq!(
            place.resolve("script").unwrap().scripts,
            [place.path("script"), inner]
        );
    }

    #[test]
    fn text_without_interpreter_is_run_by_the_shell() {
        let place = Place::new();
        place.script("script", "exec python3\n");
        assert_eq!(place.resolve("script").unwrap().executable, Path::new("/bin/sh"));
    }

    #[test]
    fn what_cannot_be_run_is_an_error_of_its_own() {
        let place = Place::new();
        fs::write(place.path("data"), "x").unwrap();
        place.script("lost", "#!/nowhere/python3\n");
        place.script("spaces", "#!/usr/bin/env python3 -u\n");
        place.script("empty", "#! \n");
        place.script("self", "#!DIR/self\n");
        let error = |program: &str| place.resolve(program).unwrap_err();
        assert!(matches!(error("absent"), CommandError::NotFound { .. }));
        assert!(matches!(error(""), CommandError::NotFound { .. }));
        assert!(matches!(error("/absent"), CommandError::NotFound { .. }));
        assert!(matches!(error("data"), CommandError::NotExecutable { .. }));
        assert!(matches!(error("/etc"), CommandError::NotExecutable { .. }));
        assert!(matches!(error("lost"), CommandError::NotFound { .. }));
        assert!(matches!(error("spaces"), CommandError::NotFound { name } if name == "python3 -u"));
        assert!(matches!(error("empty"), CommandError::NotExecutable { .. }));
        assert!(matches!(error("self"), CommandError::Loop { .. }));
    }

    #[test]
    fn a_shared_build_comes_with_its_library() {
        let Some(root) = pyenv_version("3.11.7") else {
            return;
        };
        let path = root.join("bin").into_os_string();
        let search = Search::host(None);
        // pip is a script of that Python.
        for program in ["python3", "pip3"] {
            let found = resolve_command(OsStr::new(program), Some(&path), &search).unwrap();
            assert_eq!(
                found.libpython,
                Some(root.join("lib/libpython3.11.so.1.0")),
                "{program}"
            );
        }
    }
}
