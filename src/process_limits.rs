//! What the system lets this process have: open files and core files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit on open files to the hard one, since each socket is a file.
/// Returns the limit.
pub(crate) fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // If that is refused, the soft limit stays.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Forbids core files, which would contain secrets and tokens. The hard limit stays, so that an
/// operator who wants a core file can still have one.
pub(crate) fn leave_no_core() {
    let limit = getrlimit(Resource::Core);
    // A limit can always be lowered.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), ..limit });
}

/// How many files this process may have open at this moment: the limit can be changed from outside.
#[must_use]
pub(crate) fn open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    limit.current.unwrap_or(u64::MAX)
}
