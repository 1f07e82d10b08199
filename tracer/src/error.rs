//! The error that reaches the user: what happened, what caused it, and what to do about it.
//!
//! Stages have small enums of their own; only `cli` turns them into this one. Its text is
//! `error: ...`, `caused by: ...` (one line a cause), `hint: ...`.

use std::{error::Error as StdError, fmt};

/// An error as the user sees it.
#[derive(Debug)]
pub struct UserError {
    message: String,
    cause: Option<Box<dyn StdError + Send + Sync>>,
    hint: Option<String>,
    exit: Exit,
}

/// What the program's exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: all was done.
    Done,
    /// 1: there is nothing to trace.
    NothingToTrace,
    /// 2: wrong usage, or a failure.
    Failed,
    /// 3: a part was done; what was not is said on standard error.
    Partial,
}

impl Exit {
    /// The number for the shell.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::NothingToTrace => 1,
            Self::Failed => 2,
            Self::Partial => 3,
        }
    }
}

impl UserError {
    /// An error with exit code 2 and neither cause nor hint.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            cause: None,
            hint: None,
            exit: Exit::Failed,
        }
    }

    /// Says what caused it.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Says what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Replaces the exit code.
    #[must_use]
    pub fn exit_with(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// The exit code that goes with it.
    pub fn exit(&self) -> Exit {
        self.exit
    }
}

impl fmt::Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        let mut cause = self.cause.as_deref().map(|cause| cause as &dyn StdError);
        while let Some(error) = cause {
            write!(f, "\ncaused by: {error}")?;
            cause = error.source();
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl StdError for UserError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_causes_and_hint_stand_on_lines_of_their_own() {
        let error = UserError::new("cannot read app.pyrobe")
            .caused_by(std::io::Error::other("permission denied"))
            .hint("run it as root");
        assert_eq!(
            error.to_string(),
            "error: cannot read app.pyrobe\ncaused by: permission denied\nhint: run it as root"
        );
        assert_eq!(error.exit().code(), 2);
    }
}
