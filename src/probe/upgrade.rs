//! The meaning of an answer to the opening handshake (RFC 6455 section 4.1).
//!
//! Pure.

use super::causes::Cause;
use super::report::Trouble;
use super::wire::Answer;
use crate::websocket::accept_key;

/// Texts of the gateway's own answers (`http`); `tests/it/doctor_url.rs` checks each of them with a
/// real gateway.
const LACKS_UPGRADE: &str = "lacks Upgrade and Connection";
const NEEDS_HTTP_11: &str = "a WebSocket needs HTTP/1.1";
const FOREIGN_ORIGIN: &str = "server.allowed_origins";
const OTHER_PATH: &str = "sockets are at /ws";
const DRAINING: &str = "draining: connect again";
const HEADERS: [&str; 2] = ["bad Sec-WebSocket-Key", "WebSocket version 13 only"];
const TOO_MANY: &str = "too many connections";
pub(super) const FORMAT: &str = "format is plain or envelope";

/// Checks that the answer begins a WebSocket.
pub(super) fn verdict(answer: &Answer) -> Result<(), Trouble> {
    if answer.status == 101 {
        return switched(answer);
    }
    let cause = cause(answer);

    let mut found = answer.told();
    if let Some(place) = answer.header("location") {
        found = format!("{} to {place} ({})", answer.status, answer.by());
    }

    Err(Trouble::new(cause, found))
}

/// Checks the headers of an answer 101.
fn switched(answer: &Answer) -> Result<(), Trouble> {
    let lacking: Vec<_> = [
        ("Upgrade: websocket", answer.has("upgrade", "websocket")),
        ("Connection: Upgrade", answer.has("connection", "upgrade")),
        ("Sec-WebSocket-Accept", answer.header("sec-websocket-accept").is_some()),
    ]
    .into_iter()
    .filter_map(|(name, is_there)| (!is_there).then_some(name))
    .collect();

    if !lacking.is_empty() {
        let found = format!("101 without {} ({})", lacking.join(", "), answer.by());
        return Err(Trouble::new(Cause::AcceptMissing, found));
    }

    if answer.header("sec-websocket-accept") != accept_key(answer.key.as_bytes()).as_deref() {
        return Err(Trouble::new(Cause::AcceptWrong, format!("101 ({})", answer.by())));
    }
    Ok(())
}

/// Names the cause for an answer that begins no WebSocket.
fn cause(answer: &Answer) -> Cause {
    let body = answer.body();
    let says = |text: &str| body.contains(text);

    match answer.status {
        _ if says(LACKS_UPGRADE) => Cause::UpgradeDropped,
        _ if says(NEEDS_HTTP_11) => Cause::Http10,
        _ if says(FOREIGN_ORIGIN) => Cause::OriginRefused,
        _ if says(OTHER_PATH) => Cause::PathChanged,
        _ if says(DRAINING) => Cause::Draining,
        _ if HEADERS.iter().any(|text| says(text)) => Cause::HeadersDropped,
        _ if says(TOO_MANY) => Cause::Limit,
        300..400 => Cause::Redirected,
        400 if says("HTTPS port") || says("HTTPS server") => Cause::TlsExpected,
        401 if answer.header("www-authenticate").is_some_and(|v| v.contains("invalid_token")) => {
            Cause::TokenRefused
        }
        401 | 407 => Cause::ProxyLogin,
        403 => Cause::ProxyForbids,
        404 => Cause::PathUnknown,
        426 => Cause::UpgradeDropped,
        429 => Cause::Limit,
        502 | 504 => Cause::GatewayAway,
        503 => Cause::Draining,
        200..300 => Cause::OtherApplication,
        _ if answer.minor == 0 => Cause::Http10,
        _ => Cause::OtherAnswer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Answer {
        let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let key = "dGhlIHNhbXBsZSBub25jZQ==".to_owned();
        Answer {
            minor: 1,
            status,
            headers,
            rest: body.as_bytes().to_vec(),
            key,
            ..Answer::default()
        }
    }

    #[test]
    fn answers_are_named() {
        let accept = ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let upgrade = [("Upgrade", "WebSocket"), ("Connection", "keep-alive, Upgrade")];
        let good = answer(101, &[upgrade[0], upgrade[1], accept], "");
        assert_eq!(verdict(&good), Ok(()));

        for (answer, expected) in [
            (answer(101, &upgrade, ""), Cause::AcceptMissing),
            (answer(101, &[upgrade[0], accept], ""), Cause::AcceptMissing),
            (answer(101, &[upgrade[1], accept], ""), Cause::AcceptMissing),
            (answer(101, &[upgrade[0], upgrade[1], (accept.0, "x")], ""), Cause::AcceptWrong),
            (answer(200, &[], "<!doctype html>"), Cause::OtherApplication),
            (answer(301, &[("Location", "https://x/")], ""), Cause::Redirected),
            (answer(308, &[], ""), Cause::Redirected),
            (answer(401, &[("WWW-Authenticate", "Basic")], ""), Cause::ProxyLogin),
            (answer(403, &[], "blocked"), Cause::ProxyForbids),
            (answer(404, &[], "<h1>404</h1>"), Cause::PathUnknown),
            (answer(426, &[], ""), Cause::UpgradeDropped),
            (answer(502, &[], ""), Cause::GatewayAway),
            (answer(503, &[], ""), Cause::Draining),
            (answer(400, &[], "sent to HTTPS port"), Cause::TlsExpected),
            (answer(400, &[], "what?"), Cause::OtherAnswer),
            (Answer { minor: 0, ..answer(400, &[], "what?") }, Cause::Http10),
        ] {
            assert_eq!(verdict(&answer).map_err(|t| t.cause), Err(expected), "{answer:?}");
        }
    }

    #[test]
    fn a_redirect_says_where_to() {
        let found = verdict(&answer(301, &[("Location", "https://x/ws")], "")).unwrap_err().found;
        assert!(found.contains("https://x/ws"), "{found}");
    }
}
