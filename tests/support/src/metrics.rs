//! Reading a gateway's metrics.
//!
//! Not here: which metrics there are. All series of a name are added up, whatever their labels.

use crate::http::try_get;

/// The sum of the series that begin with `prefix`, or nothing if no gateway answers.
///
/// The prefix is without `tollgate_`. One that ends within a name is that whole name: `revocations`
/// does not count `revocations_readable`.
pub async fn read(admin: &str, prefix: &str) -> Option<f64> {
    let (_, text) = try_get(admin, "/metrics").await?;
    Some(sum(&text, prefix))
}

/// How many sockets and streams the gateway with this admin listener has, or 0 without an answer.
pub async fn connections(admin: &str) -> f64 {
    read(admin, "connections").await.unwrap_or(0.0)
}

/// The sum of the series that begin with `prefix` in a text of Prometheus' format.
pub fn sum(text: &str, prefix: &str) -> f64 {
    let in_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_meant = |line: &&str| {
        let rest = line.strip_prefix("tollgate_").and_then(|line| line.strip_prefix(prefix));
        rest.is_some_and(|rest| !(prefix.ends_with(in_name) && rest.starts_with(in_name)))
    };

    let values = text.lines().filter(is_meant).filter_map(|line| line.rsplit(' ').next());
    // Not `sum`, which makes -0 of nothing.
    values.filter_map(|value| value.parse::<f64>().ok()).fold(0.0, |all, n| all + n)
}
