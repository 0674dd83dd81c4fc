//! The log of a long-running command, as the configuration asks for it.

use crate::config::{Config, LogFormat};
use crate::logging::{self, Format};

/// Begins to log.
pub(super) fn init_log(config: &Config) -> anyhow::Result<()> {
    logging::set_interval(config.log.summary_interval.0);
    let format = match config.log.format {
        LogFormat::Text => Format::Text,
        LogFormat::Json => Format::Json,
    };
    logging::init(&config.log.level, format)
}
