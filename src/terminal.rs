//! What commands print, and how.

use std::io::Write as _;
use std::process::ExitCode;

use crate::logging;

/// Writes to standard output. A closed pipe there is no failure of ours.
///
/// # Errors
/// There is none: this is the last step of commands that can fail.
pub(crate) fn print(text: &str) -> anyhow::Result<ExitCode> {
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

/// Writes to standard error. A pipe there that nobody reads does not delay the end of the process.
pub(crate) fn complain(text: &str) {
    logging::write_within(std::io::stderr(), text.to_owned());
}
