//! The steps, and the one table of what can be found wrong. `docs/doctor.md` is generated from it,
//! and a test compares the two.

use std::fmt::Write as _;

/// The steps of an examination, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Dns,
    Tcp,
    Tls,
    Upgrade,
    Query,
    Carriers,
    Origin,
    Token,
    Subscribe,
    Publish,
    Sse,
    Idle,
    SseIdle,
    Clock,
}

impl Step {
    pub(super) const ALL: [Self; 14] = [
        Self::Dns,
        Self::Tcp,
        Self::Tls,
        Self::Upgrade,
        Self::Query,
        Self::Carriers,
        Self::Origin,
        Self::Token,
        Self::Subscribe,
        Self::Publish,
        Self::Sse,
        Self::Idle,
        Self::SseIdle,
        Self::Clock,
    ];

    pub(super) fn slug(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Upgrade => "upgrade",
            Self::Query => "query",
            Self::Carriers => "carriers",
            Self::Origin => "origin",
            Self::Token => "token",
            Self::Subscribe => "subscribe",
            Self::Publish => "publish",
            Self::Sse => "sse",
            Self::Idle => "idle",
            Self::SseIdle => "sse_idle",
            Self::Clock => "clock",
        }
    }
}

/// One row: slug, meaning, fix.
type Row = (&'static str, &'static str, &'static str);

macro_rules! causes {
    ($($name:ident => $row:expr,)*) => {
        /// What is wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Cause { $($name,)* }

        impl Cause {
            const ALL: &[Self] = &[$(Self::$name,)*];

            fn row(self) -> Row {
                match self { $(Self::$name => $row,)* }
            }
        }
    };
}

causes! {
    NameUnknown => ("name_unknown", "The name has no address.",
        "Make its DNS record, or correct the name."),
    TcpRefused => ("tcp_refused", "Nothing listens at that address and port.",
        "Start the proxy or the gateway there, or correct the port."),
    TcpSilent => ("tcp_silent", "The address does not answer.",
        "Open the port in the firewall or security group, or correct the DNS record."),
    NotTls => ("not_tls", "The port answers, but without TLS.",
        "Terminate TLS there (nginx: `listen 443 ssl`), or use ws:// where no TLS is meant."),
    TlsFailed => ("tls_failed", "The TLS handshake failed.",
        "Allow TLS 1.2 or 1.3 with current ciphers; the error says what was missing."),
    CertificateName => ("certificate_name", "The certificate is for another name.",
        "Give the proxy the certificate of this host (nginx: the `server_name` block that answers), or \
         connect to a name that is in it."),
    CertificateExpired => ("certificate_expired", "The certificate has expired.",
        "Renew it and reload the proxy. If it is renewed already, the proxy still holds the old one."),
    CertificateNotYet => ("certificate_not_yet", "The certificate is not valid yet.",
        "Set the clock of the machine that runs this, or wait."),
    CertificateEnds => ("certificate_ends", "The certificate ends within 7 days.",
        "Renew it, reload the proxy, and see why the renewal did not run."),
    ChainIncomplete => ("chain_incomplete",
        "The server sends its own certificate without the intermediate ones, or a private authority signed it.",
        "Serve the whole chain (`fullchain.pem`); for a private authority give `--ca FILE`."),
    SelfSigned => ("self_signed", "The certificate is signed by itself: browsers refuse it.",
        "Use one of an authority that clients trust."),
    UnknownAuthority => ("unknown_authority", "No trusted authority signed the certificate.",
        "Use one of a public authority; for a private authority give `--ca FILE`."),
    TlsExpected => ("tls_expected", "The port expects TLS.", "Use wss://."),
    UpgradeDropped => ("upgrade_dropped",
        "The request reached the gateway without `Upgrade` and `Connection`: a proxy dropped them.",
        "nginx: `proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection \
         \"upgrade\";`. Apache: `mod_proxy_wstunnel`. Elsewhere: switch on WebSockets for this route."),
    Http10 => ("http_1_0", "A proxy speaks HTTP/1.0 to the gateway, which has no WebSockets.",
        "nginx: `proxy_http_version 1.1;` beside the `Upgrade` and `Connection` headers."),
    HeadersDropped => ("headers_dropped", "The request reached the gateway without its `Sec-WebSocket-` headers.",
        "Let the proxy pass all request headers on this route."),
    AcceptMissing => ("accept_missing", "The answer 101 lacks `Upgrade`, `Connection` or `Sec-WebSocket-Accept`.",
        "A proxy strips headers of the answer: let it pass them on this route."),
    AcceptWrong => ("accept_wrong", "`Sec-WebSocket-Accept` does not belong to our key.",
        "Something answers by itself, from a cache or for another request: switch that off for this route."),
    Redirected => ("redirected", "The answer is a redirect, which a WebSocket does not follow.",
        "Use the address that it points at, or take this route out of the redirect."),
    PathUnknown => ("path_unknown", "The proxy has no route for this path: the request did not reach the gateway.",
        "Route the path to the gateway (nginx: `location /ws`; an ingress: `path: /ws`), or correct the URL."),
    PathChanged => ("path_changed", "The request reached the gateway with another path than `/ws`.",
        "Correct the URL, or let the proxy pass the path as the gateway knows it: `/ws`, `/sse`, `/api`."),
    OtherApplication => ("other_application", "Another application answers here, with a page.",
        "Route the path to the gateway before the application's catch-all."),
    ProxyForbids => ("proxy_forbids", "403, and not from the gateway: a proxy or firewall refuses.",
        "Allow WebSockets on this route in its rules."),
    ProxyLogin => ("proxy_login", "401, and not from the gateway: a proxy asks for a login.",
        "Take this route out of its authentication; the gateway checks tokens itself."),
    GatewayAway => ("gateway_away", "The proxy cannot reach the gateway.",
        "Look whether the gateway runs and is ready (`/readyz`), and at the proxy's upstream address and port."),
    Draining => ("draining", "The gateway drains, or no replica is ready.",
        "Try again. If it stays so, the proxy goes on to use a replica that is not ready: route by `/readyz`."),
    Limit => ("limit", "A limit of connections or requests was hit.",
        "If it is the gateway's: set `server.trusted_proxies`, or else all sockets count as the proxy's \
         address; then look at `limits`. If the proxy's: raise it."),
    NoAnswer => ("no_answer", "The connection was made, and no answer came.",
        "A proxy holds the answer back or cannot reach the gateway: look at its log."),
    Closed => ("closed", "The connection was closed without an answer.",
        "Something on the way does not take the upgrade: look at the log of whatever listens there."),
    NotHttp => ("not_http", "What answers is not HTTP/1.1.", "Correct the port."),
    OtherAnswer => ("other_answer", "An answer that neither a gateway nor a proxy in order gives.",
        "Status, headers and body say who answered; look at its log."),
    QueryDropped => ("query_dropped", "The query string does not reach the gateway.",
        "nginx: `proxy_pass` without variables and without a `rewrite` that ends in `?`; with variables add \
         `$is_args$args`."),
    AuthorizationDropped => ("authorization_dropped", "The header `Authorization` does not reach the gateway.",
        "Let the proxy pass it (nginx: no `proxy_set_header Authorization`), or carry tokens as a subprotocol."),
    SubprotocolDropped => ("subprotocol_dropped",
        "`Sec-WebSocket-Protocol` does not get through: browsers cannot bring a token as a subprotocol.",
        "Let the proxy pass it in both directions."),
    OriginRefused => ("origin_refused", "The gateway refuses pages of this origin.",
        "Add it to `server.allowed_origins`, exactly: scheme, host, port where it is not the scheme's."),
    OriginPort => ("origin_port", "The gateway refuses pages of its own host on another port: that is another origin.",
        "Add the page's origin to `server.allowed_origins`, with its port, or serve both on one port."),
    HostChanged => ("host_changed", "The gateway refuses pages of its own host: a proxy changes `Host`.",
        "nginx: `proxy_set_header Host $http_host;` (`$host` has no port), or add the origin to `server.allowed_origins`."),
    TokenRefused => ("token_refused", "The gateway refuses the token.",
        "Ask why, where the gateway's configuration is: `tollgate token check --config FILE < TOKEN_FILE`."),
    ClosedAtOnce => ("closed_at_once", "The gateway closed the socket.",
        "The code says why: see the codes in docs/protocol.md."),
    NoGreeting => ("no_greeting", "The upgrade passed, but the first message did not arrive.",
        "A proxy holds back what comes after 101: switch its buffering off; or Redis is away: see `/readyz`."),
    SubscribeRefused => ("subscribe_refused", "The subscription was refused.",
        "`forbidden`: no rule in `[[channels]]` gives this user the channel. Others: docs/protocol.md."),
    SubscribeSilent => ("subscribe_silent", "The subscription was not answered.",
        "What the client sends does not arrive, or Redis is away: see `/readyz`."),
    ApiAway => ("api_away", "The server API cannot be reached.", "Correct `--api`, or open the way to it."),
    ApiOther => ("api_other", "What answers at `--api` is no gateway: the key was not sent.",
        "Correct `--api`: the gateway's own address, such as http://gateway:8000, where backends reach it."),
    ApiKeyRefused => ("api_key_refused", "The server API refuses the key.",
        "Use a key of `api.keys` or `api.key_file`, whole and without quotes; let the proxy pass `X-API-Key`."),
    ApiAnswer => ("api_answer", "The server API did not publish.",
        "Correct `--api` where the path is wrong; else the error says why: `/readyz` has the state of Redis."),
    EventLost => ("event_lost", "The event was published and did not arrive.",
        "The replica that published and the one that has the socket do not share a Redis: `broker.kind = \
         \"redis\"` on all, with the same `redis.url` and `redis.prefix`."),
    SseBuffered => ("sse_buffered", "The stream's first bytes or its heartbeats do not come through: a proxy buffers the answer.",
        "nginx: `proxy_http_version 1.1; proxy_buffering off;` on this route, and no `proxy_ignore_headers X-Accel-Buffering`. \
         Elsewhere: switch off buffering, caching and compression of `text/event-stream`."),
    SseCompressed => ("sse_compressed", "A proxy compresses the stream, which holds events back.",
        "Take `text/event-stream` out of its compression."),
    SseRefused => ("sse_refused", "The stream was refused.", "The status and the body say why: docs/protocol.md."),
    SseAnswer => ("sse_answer", "`/sse` does not answer with a stream.",
        "Route `/sse` to the gateway as `/ws` is."),
    IdleCut => ("idle_cut", "An idle socket is cut: a proxy's idle time-out is shorter than the gateway's pings.",
        "Raise the time-out above `limits.ping_interval` (nginx: `proxy_read_timeout 75s; proxy_send_timeout \
         75s;`; HAProxy: `timeout tunnel`; a load balancer: its idle time-out), or lower `limits.ping_interval`."),
    IdleClosed => ("idle_closed", "The gateway closed the idle socket.",
        "The code says why. 4408: our answers to its pings do not arrive. 4401: the token ended."),
    IdleDeaf => ("idle_deaf", "After the idle time the socket is open, but nothing passes.",
        "Something on the way forgot the connection: raise its idle time-out above `limits.ping_interval`."),
    SseCut => ("sse_cut", "An idle stream is cut: a proxy's time-out is shorter than the heartbeat.",
        "Raise the time-out above `limits.ping_interval` (nginx: `proxy_read_timeout 75s;` on this route too)."),
    ClockSkew => ("clock_skew", "The server's clock and ours differ.",
        "Run NTP on both. If `Date` is a proxy's, look at the gateway's machine too: it checks tokens by its own."),
    TokenExpired => ("token_expired", "By the server's clock the token has ended.", "Get a new token."),
    TokenNotYet => ("token_not_yet", "By the server's clock the token is not valid yet.",
        "Run NTP on the issuer and the gateway; `auth.leeway` forgives small differences."),
    IssuerClock => ("issuer_clock", "The token was issued in the future: the issuer's clock is ahead.",
        "Run NTP on the issuer and the gateway; `auth.leeway` forgives small differences."),
    TokenMilliseconds => ("token_milliseconds", "The token's `exp` counts milliseconds.",
        "The issuer has to write seconds (RFC 7519 section 2)."),
}

impl Cause {
    pub(super) fn slug(self) -> &'static str {
        self.row().0
    }

    pub(super) fn meaning(self) -> &'static str {
        self.row().1
    }

    pub(super) fn fix(self) -> &'static str {
        self.row().2
    }
}

/// The table as Markdown, for `docs/doctor.md`.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from("| cause | meaning | what to do |\n| --- | --- | --- |\n");
    for (slug, meaning, fix) in Cause::ALL.iter().map(|cause| cause.row()) {
        let _ = writeln!(out, "| `{slug}` | {meaning} | {fix} |");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_unique_and_rows_fit_into_a_table() {
        for (i, (slug, meaning, fix)) in Cause::ALL.iter().map(|c| c.row()).enumerate() {
            assert!(Cause::ALL[i + 1..].iter().all(|other| other.slug() != slug), "{slug}");
            for text in [meaning, fix] {
                assert!(
                    !text.contains(['|', '\n']) && text.ends_with(['.', '`']),
                    "{slug}: {text}"
                );
            }
        }
    }
}
