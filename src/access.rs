//! Access: who may subscribe to what. [`decide`] goes through the rules in order; the first one
//! whose pattern matches decides, and without a match the answer is no.
//!
//! Not here: tokens (`auth`), sockets, IO of any kind. Invariant: matching is exact, segment by
//! segment; an id is compared whole, never as a prefix or a pattern. A name contains a user's id as
//! [`encode_id`] writes it, and in no other way.

use std::sync::Arc;

use serde_json::Value;

use crate::channel::{ChannelName, ChannelNameError, Retention, encode_id, is_forbidden};

/// What a token can be revoked by: its `jti`, and its `iat` in Unix seconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenId {
    pub jti: Option<Box<str>>,
    pub issued_at: Option<u64>,
}

/// The user that a token stands for, and what the token says of access.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    pub user: Arc<str>,
    /// Unix seconds; `None` if the token has no `exp` and none is required.
    pub expires_at: Option<u64>,
    /// The token's `channels` claim, for `allow = "granted"`.
    pub granted: Box<[ChannelName]>,
    /// What the token can be revoked by.
    pub token: TokenId,
    /// The claims that rules use, and no others.
    pub claims: Box<[(Box<str>, Value)]>,
}

impl Identity {
    /// One of the kept claims.
    #[must_use]
    pub fn claim(&self, name: &str) -> Option<&Value> {
        self.claims.iter().find(|(n, _)| **n == *name).map(|(_, v)| v)
    }
}

/// A part of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(Box<str>),
    Placeholder(Box<str>),
}

/// A channel pattern such as `user:{user}`. A placeholder stands for one whole segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Box<[Segment]>);

impl std::str::FromStr for Pattern {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let segment = |part: &str| {
            if part.is_empty() {
                return Err("a pattern must not have empty parts".to_owned());
            }

            if let Some(name) = part.strip_prefix('{').and_then(|p| p.strip_suffix('}'))
                && !name.is_empty()
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            {
                return Ok(Segment::Placeholder(name.into()));
            }

            if part.chars().any(is_forbidden) {
                return Err(format!(
                    "{part:?} is neither a plain word nor a placeholder such as {{id}}"
                ));
            }

            Ok(Segment::Literal(part.into()))
        };

        Ok(Self(s.split(':').map(segment).collect::<Result<_, _>>()?))
    }
}

impl Pattern {
    /// Returns `None` if the channel does not match. Otherwise it returns the part that the first
    /// placeholder stands for, if there is a placeholder.
    fn matches<'c>(&self, channel: &'c ChannelName) -> Option<Option<&'c str>> {
        let mut first = None;
        let mut parts = channel.as_str().split(':');
        for segment in &self.0 {
            let part = parts.next()?;
            match segment {
                Segment::Literal(literal) if **literal == *part => {}
                Segment::Literal(_) => return None,
                Segment::Placeholder(_) => first = first.or(Some(part)),
            }
        }
        parts.next().is_none().then_some(first)
    }

    #[must_use]
    pub fn placeholders(&self) -> usize {
        self.0.iter().filter(|s| matches!(s, Segment::Placeholder(_))).count()
    }

    /// The channel that the pattern names for a user, whose id is encoded.
    fn for_user(&self, user: &str) -> Result<ChannelName, ChannelNameError> {
        let user = encode_id(user);
        let parts: Vec<&str> = self
            .0
            .iter()
            .map(|segment| match segment {
                Segment::Literal(literal) => &**literal,
                Segment::Placeholder(_) => &*user,
            })
            .collect();

        parts.join(":").parse()
    }
}

/// What a rule asks of the subscriber.
#[derive(Debug, Clone, PartialEq)]
pub enum Allow {
    /// The placeholder is the user's id.
    Owner,
    /// Any connection with a token.
    Authenticated,
    /// Any connection.
    Public,
    /// The token has this claim: with this value, or `true` if the rule gives none.
    Claim(Box<str>, Option<Value>),
    /// The channel is listed in the token's `channels`.
    Granted,
    /// The subscription comes with a subscription token for the channel.
    Token,
    /// The application is asked, and told these claims.
    Callback(Box<[Box<str>]>),
}

/// What is left to do for a subscriber that is not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision<'r> {
    Allowed,
    /// Check the subscription token.
    Token,
    /// Ask the application, with these claims.
    Callback(&'r [Box<str>]),
}

/// A rule: which channels it is for, who may have them, and what is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub pattern: Pattern,
    pub allow: Allow,
    pub auto_subscribe: bool,
    /// How the channels' publications are kept, if they are.
    pub history: Option<Retention>,
}

/// The rule that decides on a channel.
#[must_use]
pub fn rule<'r>(channel: &ChannelName, rules: &'r [Rule]) -> Option<&'r Rule> {
    rules.iter().find(|rule| rule.pattern.matches(channel).is_some())
}

/// How a channel's history is kept, by the rule that decides on the channel.
#[must_use]
pub fn history(channel: &ChannelName, rules: &[Rule]) -> Option<Retention> {
    rule(channel, rules)?.history
}

/// True if a rule matches the channel. Otherwise nobody can have it.
#[must_use]
pub fn is_given(channel: &ChannelName, rules: &[Rule]) -> bool {
    rules.iter().any(|rule| rule.pattern.matches(channel).is_some())
}

/// Why a subscriber may not have a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    NoRule,
    NotOwner,
    NeedsToken,
    ClaimMissing,
    NotGranted,
}

impl Denied {
    /// The reason as text. It is safe to show to the client.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::NoRule => "no rule allows this channel",
            Self::NotOwner => "this channel belongs to another user",
            Self::NeedsToken => "this channel needs a token",
            Self::ClaimMissing => "the token does not have the claim that this channel needs",
            Self::NotGranted => "the token does not grant this channel",
        }
    }
}

/// Decides whether a client with this identity, or without a token, may have this channel.
///
/// # Errors
/// Why not.
pub fn decide<'r>(
    identity: Option<&Identity>,
    channel: &ChannelName,
    rules: &'r [Rule],
) -> Result<Decision<'r>, Denied> {
    let (rule, id) = rules
        .iter()
        .find_map(|rule| rule.pattern.matches(channel).map(|id| (rule, id)))
        .ok_or(Denied::NoRule)?;

    if rule.allow == Allow::Public {
        return Ok(Decision::Allowed);
    }

    let identity = identity.ok_or(Denied::NeedsToken)?;

    match &rule.allow {
        Allow::Public | Allow::Authenticated => Ok(Decision::Allowed),
        Allow::Owner if id == Some(&*encode_id(&identity.user)) => Ok(Decision::Allowed),
        Allow::Owner => Err(Denied::NotOwner),
        Allow::Claim(name, expected) => match (identity.claim(name), expected) {
            (Some(value), Some(expected)) if value == expected => Ok(Decision::Allowed),
            (Some(Value::Bool(true)), None) => Ok(Decision::Allowed),
            _ => Err(Denied::ClaimMissing),
        },
        Allow::Granted if identity.granted.contains(channel) => Ok(Decision::Allowed),
        Allow::Granted => Err(Denied::NotGranted),
        Allow::Token => Ok(Decision::Token),
        Allow::Callback(claims) => Ok(Decision::Callback(claims)),
    }
}

/// The channels to subscribe at connect: those that rules with `auto_subscribe` name for this
/// identity and that [`decide`] allows.
#[must_use]
pub fn automatic(identity: Option<&Identity>, rules: &[Rule]) -> Vec<ChannelName> {
    let mut channels: Vec<ChannelName> = Vec::new();
    for rule in rules.iter().filter(|r| r.auto_subscribe) {
        let named: Vec<ChannelName> = match (&rule.allow, identity) {
            (Allow::Granted, Some(id)) => {
                let fits = |c: &&ChannelName| rule.pattern.matches(c).is_some();
                id.granted.iter().filter(fits).cloned().collect()
            }
            (Allow::Owner, Some(id)) => rule.pattern.for_user(&id.user).into_iter().collect(),
            _ if rule.pattern.placeholders() == 0 => {
                rule.pattern.for_user("").into_iter().collect()
            }
            _ => Vec::new(),
        };

        for channel in named {
            let allowed = decide(identity, &channel, rules) == Ok(Decision::Allowed);
            if allowed && !channels.contains(&channel) {
                channels.push(channel);
            }
        }
    }

    channels
}

/// Why one of a user's automatic channels cannot be named: with the id in it the name is too long.
#[must_use]
pub fn unnameable(identity: &Identity, rules: &[Rule]) -> Option<ChannelNameError> {
    let owned = rules.iter().filter(|r| r.auto_subscribe && r.allow == Allow::Owner);
    owned.filter_map(|rule| rule.pattern.for_user(&identity.user).err()).next()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(pattern: &str, allow: Allow) -> Rule {
        Rule { pattern: pattern.parse().unwrap(), allow, auto_subscribe: true, history: None }
    }

    fn identity(user: &str) -> Identity {
        Identity {
            user: user.into(),
            expires_at: None,
            token: TokenId::default(),
            granted: Box::new(["post:7".parse().unwrap()]),
            claims: Box::new([
                ("isCreator".into(), Value::Bool(true)),
                ("plan".into(), Value::from("gold")),
                ("off".into(), Value::Bool(false)),
            ]),
        }
    }

    fn rules() -> Vec<Rule> {
        vec![
            rule("user:{user}", Allow::Owner),
            rule("post:{id}", Allow::Granted),
            rule("creator:{id}", Allow::Claim("isCreator".into(), None)),
            rule("gold:{id}", Allow::Claim("plan".into(), Some(Value::from("gold")))),
            rule("off:{id}", Allow::Claim("off".into(), None)),
            rule("staff:{id}", Allow::Claim("isStaff".into(), None)),
            rule("news", Allow::Public),
            rule("lobby", Allow::Authenticated),
        ]
    }

    #[test]
    fn the_first_matching_rule_decides_and_nothing_else_is_allowed() {
        let rules = rules();
        let id = identity("u1");

        for (channel, with_token, without) in [
            ("user:u1", Ok(Decision::Allowed), Err(Denied::NeedsToken)),
            ("user:u12", Err(Denied::NotOwner), Err(Denied::NeedsToken)),
            ("user:u", Err(Denied::NotOwner), Err(Denied::NeedsToken)),
            ("user:U1", Err(Denied::NotOwner), Err(Denied::NeedsToken)),
            ("user:u1:x", Err(Denied::NoRule), Err(Denied::NoRule)),
            ("user", Err(Denied::NoRule), Err(Denied::NoRule)),
            ("post:7", Ok(Decision::Allowed), Err(Denied::NeedsToken)),
            ("post:77", Err(Denied::NotGranted), Err(Denied::NeedsToken)),
            ("creator:1", Ok(Decision::Allowed), Err(Denied::NeedsToken)),
            ("gold:1", Ok(Decision::Allowed), Err(Denied::NeedsToken)),
            ("off:1", Err(Denied::ClaimMissing), Err(Denied::NeedsToken)),
            ("staff:1", Err(Denied::ClaimMissing), Err(Denied::NeedsToken)),
            ("news", Ok(Decision::Allowed), Ok(Decision::Allowed)),
            ("lobby", Ok(Decision::Allowed), Err(Denied::NeedsToken)),
            ("other", Err(Denied::NoRule), Err(Denied::NoRule)),
        ] {
            let channel = channel.parse().unwrap();
            assert_eq!(decide(Some(&id), &channel, &rules), with_token, "{channel}");
            assert_eq!(decide(None, &channel, &rules), without, "{channel} without a token");
        }
    }

    #[test]
    fn automatic_subscriptions_are_the_users_own() {
        let names = |id: Option<&Identity>| {
            automatic(id, &rules()).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(names(Some(&identity("u1"))), ["user:u1", "post:7", "news", "lobby"]);
        assert_eq!(names(None), ["news"]);
    }

    #[test]
    fn field_c10_any_id_has_its_own_channel_and_no_other() {
        let rules = rules();
        let named = |user: &str| automatic(Some(&identity(user)), &rules).swap_remove(0);
        let user = identity("did:privy:1");
        assert_eq!(named("did:privy:1").as_str(), "user:did%3Aprivy%3A1");

        for (channel, allowed) in [
            ("user:did%3Aprivy%3A1", Ok(Decision::Allowed)),
            ("user:did%3aprivy%3a1", Err(Denied::NotOwner)),
            ("user:did%253Aprivy%253A1", Err(Denied::NotOwner)),
            ("user:%64id%3Aprivy%3A1", Err(Denied::NotOwner)),
            ("user:did", Err(Denied::NotOwner)),
            ("user:did:privy:1", Err(Denied::NoRule)),
        ] {
            assert_eq!(
                decide(Some(&user), &channel.parse().unwrap(), &rules),
                allowed,
                "{channel}"
            );
        }

        let spelled = identity("did%3Aprivy%3A1");
        assert_eq!(named("did%3Aprivy%3A1").as_str(), "user:did%253Aprivy%253A1");
        assert!(decide(Some(&spelled), &named("did:privy:1"), &rules).is_err());

        // Each colon takes three bytes, so the name has no room for this id.
        let long = identity(&":".repeat(100));
        let names = automatic(Some(&long), &rules);
        assert!(!names.iter().any(|c| c.as_str().starts_with("user:")), "{names:?}");
        assert_eq!(unnameable(&long, &rules), Some(ChannelNameError::TooLong));
        assert_eq!(unnameable(&user, &rules), None);
    }

    #[test]
    fn patterns_are_checked() {
        for bad in ["", "a:", "user:*", "a b", "post:{id", "post:x{id}", "{}"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        /// The owner is exactly the user, even if ids hold characters that a channel's name cannot.
        #[test]
        fn field_c10_owner_means_exactly_the_user_whatever_the_id(
            user in "[a%:*3A ]{1,5}", other in "[a%:*3A ]{1,5}", written in "[a%3A25]{1,7}",
        ) {
            let channel = automatic(Some(&identity(&other)), &rules()).swap_remove(0);
            let allowed = decide(Some(&identity(&user)), &channel, &rules()).is_ok();
            prop_assert_eq!(allowed, user == other);

            let channel: ChannelName = format!("user:{written}").parse().unwrap();
            let is_owner = |user: &str| decide(Some(&identity(user)), &channel, &rules()).is_ok();
            prop_assert!(!(is_owner(&user) && is_owner(&other)) || user == other);
        }

        /// R13: no user is ever allowed a channel of another, however alike the ids are.
        #[test]
        fn r13_owner_means_exactly_the_user(user in "[a-c1-3|@.-]{1,4}", other in "[a-c1-3|@.-]{1,4}") {
            let channel = format!("user:{other}").parse().unwrap();
            let allowed = decide(Some(&identity(&user)), &channel, &rules()).is_ok();
            prop_assert_eq!(allowed, user == other);
        }
    }
}
