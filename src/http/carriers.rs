//! Where a request carries its token.
//!
//! Pure. Not here: the checks of the token (`session::tokens`). Invariant: a bounded number of
//! tokens is checked.

use axum::http::{HeaderMap, Uri};

use super::headers::{self, bearer, offered, parameters};
use crate::auth::SessionCookie;
use crate::session::tokens::Brought;

/// The subprotocol that a client offers beside `bearer.<jwt>`, and that is selected.
pub(super) const SUBPROTOCOL: &str = "tollgate";

/// The cookies that may hold a token.
#[derive(Clone, Copy, Default)]
pub(super) struct Cookies<'p> {
    /// The name of the cookie that holds a token.
    pub(super) token: Option<&'p str>,
    pub(super) session: Option<&'p SessionCookie>,
}

/// How many tokens of one request are checked: of each carrier that the page itself sets, and of
/// the cookies, which the browser adds.
const MAX_GIVEN: usize = 2;
const MAX_AMBIENT: usize = 6;

/// The tokens of a request, in the order in which they count.
pub(super) fn brought<'r>(
    headers: &'r HeaderMap,
    uri: &'r Uri,
    cookies: Cookies<'r>,
) -> Vec<Brought<'r>> {
    let given = |by, token| Brought { by, session: None, token };
    let header = bearer(headers).map(|token| given("header", token));
    let subprotocols = offered(headers).filter_map(|p| p.strip_prefix("bearer."));

    let pairs: Vec<_> = headers::cookies(headers).collect();
    // One name may come with several paths, and signing out leaves an empty cookie.
    let named = |pair: &&(&str, &str)| cookies.token == Some(pair.0) && !pair.1.is_empty();
    let tokens = pairs.iter().filter(named).map(|(_, token)| given("cookie", (*token).into()));
    let sessions = cookies.session.map(|session| session.find(&pairs)).unwrap_or_default();
    let sessions = sessions.into_iter().map(|(name, token)| Brought {
        by: "session_cookie",
        session: Some(name),
        token: token.into(),
    });

    let subprotocols = subprotocols.map(|token| given("subprotocol", token.into()));
    let queries = parameters(uri, "token").map(|token| given("query", token));
    let explicit = header.into_iter().chain(subprotocols.take(MAX_GIVEN));
    let ambient = tokens.chain(sessions).take(MAX_AMBIENT);
    explicit.chain(ambient).chain(queries.take(MAX_GIVEN)).collect()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    #[test]
    fn field_c8_carriers_come_in_order_and_each_counts() {
        let uri: Uri = "/ws?token=q%2Eq&token=r".parse().unwrap();
        let map = headers(&[
            ("authorization", "Bearer h"),
            ("sec-websocket-protocol", "tollgate, bearer.s"),
            ("cookie", "a=b; jwt=; jwt=c; jwt=d"),
            ("cookie", "s.1=b; s.0=a; s.3=d; s=whole; t="),
        ]);

        let session =
            SessionCookie { names: ["s", "t"].map(str::to_owned).to_vec(), secrets: vec![] };
        let cookies = Cookies { token: Some("jwt"), session: Some(&session) };

        let found = brought(&map, &uri, cookies);
        let found: Vec<_> = found.iter().map(|b| (b.by, b.session, &*b.token)).collect();
        let expected = [
            ("header", None, "h"),
            ("subprotocol", None, "s"),
            ("cookie", None, "c"),
            ("cookie", None, "d"),
            ("session_cookie", Some("s"), "whole"),
            ("session_cookie", Some("s"), "ab"),
            ("query", None, "q.q"),
            ("query", None, "r"),
        ];
        assert_eq!(found, expected);

        let many: Uri = format!("/ws?{}", "token=x&".repeat(100)).parse().unwrap();
        assert_eq!(brought(&map, &many, cookies).len(), expected.len());

        let none = headers(&[("cookie", "jwt=; s=; a=b")]);
        assert!(brought(&none, &"/ws".parse().unwrap(), cookies).is_empty());
        assert!(
            brought(&headers(&[("cookie", "jwt=c")]), &"/ws".parse().unwrap(), Cookies::default())
                .is_empty()
        );
    }
}
