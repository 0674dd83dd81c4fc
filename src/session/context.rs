//! What all sessions share.

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::access::Rule;
use crate::config::Policy;
use crate::diagnosis::sampler::Sampler;
use crate::gateway::Gateway;
use crate::upstream::callback::Callback;
use crate::upstream::jwks::Jwks;

/// The gateway, the policy and whom to ask, for all sessions of this replica.
pub struct Context {
    pub gateway: Arc<Gateway>,
    pub policy: ArcSwap<Policy>,
    /// It is stored after the policy that caused it: a session that sees the change sees
    /// that policy too.
    pub change: ArcSwap<Change>,
    pub jwks: Arc<Jwks>,
    pub callback: ArcSwapOption<Callback>,
    pub sampler: Arc<Sampler>,
}

/// The latest change of the rules.
#[derive(Debug, Default)]
pub struct Change {
    /// How often the rules have changed.
    pub number: u32,
    pub before: Vec<Rule>,
}
