//! The configuration file that a command is given, and what is wrong with it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::config::{Problem, Sources};
use crate::terminal::complain;

/// Exit status of a configuration that cannot be used (sysexits.h, EX_CONFIG).
const EX_CONFIG: u8 = 78;

#[derive(Debug, Args)]
pub(super) struct File {
    /// Configuration file [default: $TOLLGATE_CONFIG; without it the built-in defaults]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl File {
    pub(super) fn is_given(&self) -> bool {
        self.config.is_some()
    }
}

pub(super) fn problems(problems: &[Problem]) -> ExitCode {
    let list: Vec<_> = problems.iter().map(|p| format!("  {p}\n")).collect();
    let count = problems.len();
    let s = if count == 1 { "" } else { "s" };
    complain(&format!("tollgate: {count} problem{s} with the configuration:\n{}", list.concat()));
    ExitCode::from(EX_CONFIG)
}

pub(super) fn sources(file: &File) -> Sources<'static> {
    Sources::of_process(file.config.clone())
}
