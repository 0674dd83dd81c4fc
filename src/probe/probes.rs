//! Handshakes that each show one thing, without the real token. Every proxy logs what is tried in a
//! URL, so a made-up token takes the place of the real one.

use std::time::Duration;

use reqwest::Url;
use tokio::time::Instant;

use super::causes::Cause;
use super::clock::Clocks;
use super::report::{Checked, Trouble};
use super::session::{Heard, Refused, Socket, TOKEN_REFUSED, closed};
use super::target::{Line, millis};
use super::upgrade::FORMAT;
use super::wire::{Answer, Asked};
use crate::auth::Reason;
use crate::protocol::codes::CloseCode;

/// A made-up token. No token has this form, so the gateway refuses it as `malformed`.
const MADE_UP: &str = "tollgate-doctor";

/// A subprotocol that the gateway selects if it is offered.
const SUBPROTOCOL: &str = "tollgate";

/// Makes the handshake as a client does, without a token. Returns the time in its answer, too.
pub(super) async fn upgrade(line: &Line) -> (Checked<Socket>, Option<Clocks>) {
    let clocks = |answer: &Answer| Clocks::read(answer.header("date"), answer.by());
    match Socket::open(line, &Asked::default()).await {
        Ok((socket, answer)) => {
            let said = format!("101 in {} ({})", millis(answer.took), answer.by());
            (Ok((socket, said)), clocks(&answer))
        }
        Err(Refused(trouble, answer)) => (Err(trouble), clocks(&answer)),
    }
}

/// Checks that the query arrives. The gateway refuses a format that it does not know, so a gateway
/// that does not refuse has not seen the query.
pub(super) async fn query(line: &Line) -> Checked<()> {
    let asked = Asked { query: &[("format", MADE_UP)], ..Asked::default() };
    match Socket::open(line, &asked).await {
        Ok((socket, answer)) => {
            socket.close().await;
            let found = format!("the gateway did not notice ?format={MADE_UP} ({})", answer.by());
            return Err(Trouble::new(Cause::QueryDropped, found));
        }
        Err(Refused(_, answer)) if answer.body().contains(FORMAT) => {}
        Err(Refused(trouble, _)) => return Err(trouble),
    }

    let asked = Asked { query: &[("token", MADE_UP)], ..Asked::default() };
    match is_seen(line, &asked).await? {
        (true, _) => Ok(((), "the query passes, and so does a made-up token in it".to_owned())),
        (false, _) => {
            let found = "the query passes, but without `token`: the gateway did not notice ?token=";
            Err(Trouble::new(Cause::QueryDropped, found))
        }
    }
}

/// Returns whether a made-up token reaches the gateway, which then refuses it, and whether the
/// subprotocol was selected.
async fn is_seen(line: &Line, asked: &Asked<'_>) -> Result<(bool, bool), Trouble> {
    let (mut socket, answer) = match Socket::open(line, asked).await {
        Ok(opened) => opened,
        // The gateway has `auth.reject = "http"`.
        Err(Refused(trouble, answer)) if trouble.cause == Cause::TokenRefused => {
            return Ok((answer.body().trim() != Reason::Missing.slug(), true));
        }
        Err(Refused(trouble, _)) => return Err(trouble),
    };

    let selected = answer.has("sec-websocket-protocol", SUBPROTOCOL);
    match socket.hear(Instant::now() + line.patience).await {
        Heard::Closed(TOKEN_REFUSED, reason) => Ok((reason != Reason::Missing.slug(), selected)),
        // The gateway waited for a token until the deadline.
        Heard::Closed(code, _) if code == CloseCode::Deadline.code() => Ok((false, selected)),
        Heard::Closed(code, reason) => Err(closed(code, &reason)),
        // The gateway has `auth.anonymous`, or nothing came.
        Heard::Message(_) | Heard::Nothing | Heard::Cut(_) => Ok((false, selected)),
    }
}

/// Sends a token in `Authorization`, and one as a subprotocol.
pub(super) async fn carriers(line: &Line) -> Checked<()> {
    let bearer = format!("Bearer {MADE_UP}");
    let offered = format!("{SUBPROTOCOL}, bearer.{MADE_UP}");
    let by_header = [("Authorization", bearer.as_str())];
    let by_subprotocol = [("Sec-WebSocket-Protocol", offered.as_str())];
    let asked = [&by_header, &by_subprotocol].map(|headers| Asked { headers, ..Asked::default() });

    let (header, subprotocol) = tokio::join!(is_seen(line, &asked[0]), is_seen(line, &asked[1]));
    let ((header, _), (subprotocol, selected)) = (header?, subprotocol?);

    let passes = |passes: bool| if passes { "passes" } else { "does NOT pass" };
    let found = format!(
        "Authorization {}, a token as subprotocol {}, the selected subprotocol {}",
        passes(header),
        passes(subprotocol),
        passes(selected)
    );

    match (header, subprotocol && selected) {
        (true, true) => Ok(((), found)),
        (false, _) => Err(Trouble::new(Cause::AuthorizationDropped, found)),
        (true, false) => Err(Trouble::new(Cause::SubprotocolDropped, found)),
    }
}

/// Connects as a page of this origin does.
pub(super) async fn origin(line: &Line, origin: &str) -> Checked<()> {
    let asked = Asked { headers: &[("Origin", origin)], ..Asked::default() };
    match Socket::open(line, &asked).await {
        Ok((socket, _)) => {
            socket.close().await;
            Ok(((), format!("{origin} is accepted")))
        }
        Err(Refused(mut trouble, _)) => {
            if trouble.cause == Cause::OriginRefused
                && let Ok(page) = Url::parse(origin)
                && let Some((cause, why)) = own_host_refused(line, &page)
            {
                trouble = Trouble::new(cause, format!("{why}: {}", trouble.found));
            }
            Err(trouble)
        }
    }
}

/// Says why a page of the gateway's own host is refused; `None` for a page of another host.
fn own_host_refused(line: &Line, page: &Url) -> Option<(Cause, String)> {
    let target = &line.target;
    let host = page.host_str()?.trim_matches(['[', ']']);
    if !host.eq_ignore_ascii_case(&target.host) {
        return None;
    }

    let port = page.port_or_known_default()?;
    if port != target.port {
        let why = format!("the page has port {port}, but the gateway has {}", target.port);
        return Some((Cause::OriginPort, why));
    }

    let secure = page.scheme() == "https";
    (secure == target.secure)
        .then(|| (Cause::HostChanged, "the page has the host and port of the gateway".to_owned()))
}

/// Connects with the real token.
pub(super) async fn token(line: &Line, token: &str, by_subprotocol: bool) -> Checked<Socket> {
    let bearer = format!("Bearer {token}");
    let offered = format!("{SUBPROTOCOL}, bearer.{token}");
    let header = if by_subprotocol {
        ("Sec-WebSocket-Protocol", offered.as_str())
    } else {
        ("Authorization", bearer.as_str())
    };

    let asked = Asked { headers: &[header], ..Asked::default() };
    let opened = Socket::open(line, &asked).await.map_err(|Refused(trouble, _)| trouble);
    let (mut socket, _) = opened?;
    let (data, said) = socket.greeted(line.patience).await?;

    let ends = data["expiresAt"].as_u64().map(|at| {
        let left = at.saturating_sub(crate::clock::unix_now());
        format!(", expires in {}", humantime::format_duration(Duration::from_secs(left)))
    });
    Ok((socket, said + &ends.unwrap_or_default()))
}
