//! What the running gateway finds out by itself about refused tokens and keys, and says in metrics
//! and the log.
//!
//! Not here: how a token is examined (`auth::diagnose`), the commands `token check` and `doctor`
//! (`cli`, `probe`).

pub mod key_drift;
pub mod sampler;
