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
    NameUnknown => ("name_unknown", "The host name has no address.",
        "Create its DNS record, or correct the name."),
    TcpRefused => ("tcp_refused", "Nothing listens at that address and port.",
        "Start the proxy or the gateway there, or correct the port."),
    TcpSilent => ("tcp_silent", "The address does not answer.",
        "Open the port in the firewall or security group, or correct the DNS record."),
    NotTls => ("not_tls", "The port answers, but does not speak TLS.",
        "Terminate TLS there (nginx: `listen 443 ssl`), or use ws:// if no TLS is intended."),
    TlsFailed => ("tls_failed", "The TLS handshake failed.",
        "Allow TLS 1.2 or 1.3 with current ciphers; the error says what is missing."),
    CertificateName => ("certificate_name", "The certificate is for another host name.",
        "Give the proxy the certificate of this host (nginx: in the `server_name` block that answers), or \
         connect to a name that the certificate has."),
    CertificateExpired => ("certificate_expired", "The certificate has expired.",
        "Renew the certificate and reload the proxy. If it is already renewed, the proxy still uses the old one."),
    CertificateNotYet => ("certificate_not_yet", "The certificate is not valid yet.",
        "Correct the clock of the machine that runs the doctor, or wait."),
    CertificateEnds => ("certificate_ends", "The certificate expires within 7 days.",
        "Renew it, reload the proxy, and find out why the renewal did not run."),
    ChainIncomplete => ("chain_incomplete",
        "The server sends its certificate without the intermediate ones, or a private authority signed it.",
        "Serve the whole chain (`fullchain.pem`); for a private authority use `--ca FILE`."),
    SelfSigned => ("self_signed", "The certificate is self-signed: browsers refuse it.",
        "Use a certificate from an authority that clients trust."),
    UnknownAuthority => ("unknown_authority", "No trusted authority signed the certificate.",
        "Use a certificate from a public authority; for a private authority use `--ca FILE`."),
    TlsExpected => ("tls_expected", "The port expects TLS.", "Use wss://."),
    UpgradeDropped => ("upgrade_dropped",
        "The request reached the gateway without `Upgrade` and `Connection`: a proxy dropped them.",
        "nginx: `proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection \
         \"upgrade\";`. Apache: `mod_proxy_wstunnel`. Elsewhere: switch on WebSockets for this route."),
    Http10 => ("http_1_0", "A proxy speaks HTTP/1.0 to the gateway, but WebSockets need HTTP/1.1.",
        "nginx: `proxy_http_version 1.1;` beside the `Upgrade` and `Connection` headers."),
    HeadersDropped => ("headers_dropped", "The request reached the gateway without its `Sec-WebSocket-` headers.",
        "Let the proxy pass all request headers on this route."),
    AcceptMissing => ("accept_missing", "The 101 answer lacks `Upgrade`, `Connection` or `Sec-WebSocket-Accept`.",
        "A proxy removes headers from the answer: let it pass them on this route."),
    AcceptWrong => ("accept_wrong", "`Sec-WebSocket-Accept` does not match the key of the request.",
        "A proxy answers itself, from a cache or for another request: switch that off for this route."),
    Redirected => ("redirected", "The answer is a redirect, which a WebSocket does not follow.",
        "Use the address that the redirect points to, or exclude this route from the redirect."),
    PathUnknown => ("path_unknown", "The proxy has no route for this path: the request did not reach the gateway.",
        "Route the path to the gateway (nginx: `location /ws`; an ingress: `path: /ws`), or correct the URL."),
    PathChanged => ("path_changed", "The request reached the gateway with a path other than `/ws`.",
        "Correct the URL, or let the proxy pass the path as the gateway knows it: `/ws`, `/sse`, `/api`."),
    OtherApplication => ("other_application", "Another application answers here with a web page.",
        "Route the path to the gateway before the application's catch-all."),
    ProxyForbids => ("proxy_forbids", "The answer is 403, but not from the gateway: a proxy or firewall refuses the \
         request.",
        "Allow WebSockets on this route in the rules of the proxy or firewall."),
    ProxyLogin => ("proxy_login", "The answer is 401, but not from the gateway: a proxy asks for a login.",
        "Exclude this route from the proxy's authentication; the gateway checks tokens itself."),
    GatewayAway => ("gateway_away", "The proxy cannot reach the gateway.",
        "Check that the gateway runs and is ready (`/readyz`), and check the proxy's upstream address and port."),
    Draining => ("draining", "The gateway drains, or no replica is ready.",
        "Try again. If the problem persists, the proxy keeps using a replica that is not ready: route by `/readyz`."),
    Limit => ("limit", "A limit of connections or requests was reached.",
        "If it is a limit of the gateway: set `server.trusted_proxies`, because otherwise all connections count as \
         the proxy's; then check `limits`. If it is a limit of the proxy: raise it."),
    NoAnswer => ("no_answer", "The connection was established, but no answer arrived.",
        "A proxy holds the answer back or cannot reach the gateway: check the proxy's log."),
    Closed => ("closed", "The connection was closed without an answer.",
        "Something on the way does not accept the upgrade: check the log of the server that listens there."),
    NotHttp => ("not_http", "The answer is not HTTP/1.1.", "Correct the port."),
    OtherAnswer => ("other_answer", "The answer fits neither the gateway nor a working proxy.",
        "Status, headers and body show which server answered; check its log."),
    QueryDropped => ("query_dropped", "The query string does not reach the gateway.",
        "nginx: use `proxy_pass` without variables and without a `rewrite` that ends in `?`; with variables add \
         `$is_args$args`."),
    AuthorizationDropped => ("authorization_dropped", "The `Authorization` header does not reach the gateway.",
        "Let the proxy pass it (nginx: no `proxy_set_header Authorization`), or send tokens as a subprotocol."),
    SubprotocolDropped => ("subprotocol_dropped",
        "`Sec-WebSocket-Protocol` does not get through: browsers cannot send a token as a subprotocol.",
        "Let the proxy pass it in both directions."),
    OriginRefused => ("origin_refused", "The gateway refuses pages of this origin.",
        "Add the exact origin to `server.allowed_origins`: scheme, host, and the port if it is not the scheme's \
         default."),
    OriginPort => ("origin_port", "The gateway refuses pages of its own host on another port, which are of another \
         origin.",
        "Add the page's origin to `server.allowed_origins`, with its port, or serve both on one port."),
    HostChanged => ("host_changed", "The gateway refuses pages of its own host: a proxy changes `Host`.",
        "nginx: `proxy_set_header Host $http_host;` (`$host` has no port), or add the origin to \
         `server.allowed_origins`."),
    TokenRefused => ("token_refused", "The gateway refuses the token.",
        "Find out why, where the gateway's configuration is: `tollgate token check --config FILE < TOKEN_FILE`."),
    ClosedAtOnce => ("closed_at_once", "The gateway closed the WebSocket.",
        "The code says why: see the codes in docs/protocol.md."),
    NoGreeting => ("no_greeting", "The upgrade succeeded, but the first message did not arrive.",
        "Either a proxy buffers the messages after the 101 answer: switch its buffering off. Or Redis is \
         unreachable: see `/readyz`."),
    SubscribeRefused => ("subscribe_refused", "The subscription was refused.",
        "`forbidden` means that no rule in `[[channels]]` allows this user the channel. Other codes: \
         docs/protocol.md."),
    SubscribeSilent => ("subscribe_silent", "The subscription was not answered.",
        "Either the client's messages do not reach the gateway, or Redis is unreachable: see `/readyz`."),
    ApiAway => ("api_away", "The server API cannot be reached.", "Correct `--api`, or allow connections to it."),
    ApiOther => ("api_other", "The server at `--api` is not a gateway, so the key was not sent.",
        "Set `--api` to the gateway's own address, at which backends reach it, such as http://gateway:8000."),
    ApiKeyRefused => ("api_key_refused", "The server API refuses the key.",
        "Use a key from `api.keys` or `api.key_file`, complete and without quotes; let the proxy pass `X-API-Key`."),
    ApiAnswer => ("api_answer", "The server API did not publish.",
        "Correct `--api` if the path is wrong; otherwise the error says why. `/readyz` shows the state of Redis."),
    EventLost => ("event_lost", "The event was published, but did not arrive.",
        "The replica that published the event and the one with the WebSocket do not share a Redis: set `broker.kind = \
         \"redis\"` on all, with the same `redis.url` and `redis.prefix`."),
    SseBuffered => ("sse_buffered", "The stream's first bytes or its heartbeats do not arrive: a proxy buffers the \
         answer.",
        "nginx: `proxy_http_version 1.1; proxy_buffering off;` on this route, and no `proxy_ignore_headers \
         X-Accel-Buffering`. \
         Elsewhere: switch off buffering, caching and compression of `text/event-stream`."),
    SseCompressed => ("sse_compressed", "A proxy compresses the stream, which delays events.",
        "Exclude `text/event-stream` from the proxy's compression."),
    SseRefused => ("sse_refused", "The stream was refused.", "The status and the body say why: docs/protocol.md."),
    SseAnswer => ("sse_answer", "`/sse` does not answer with a stream.",
        "Route `/sse` to the gateway in the same way as `/ws`."),
    IdleCut => ("idle_cut", "An idle WebSocket is cut off: a proxy's idle time-out is shorter than the gateway's \
         ping interval.",
        "Raise the time-out above `limits.ping_interval` (nginx: `proxy_read_timeout 75s; proxy_send_timeout \
         75s;`; HAProxy: `timeout tunnel`; a load balancer: its idle time-out), or lower `limits.ping_interval`."),
    IdleClosed => ("idle_closed", "The gateway closed the idle WebSocket.",
        "The code says why. 4408: the doctor's answers to the pings do not arrive. 4401: the token expired."),
    IdleDeaf => ("idle_deaf", "After the idle time the WebSocket is still open, but no messages pass.",
        "A proxy or firewall on the way has forgotten the connection: raise its idle time-out above \
         `limits.ping_interval`."),
    SseCut => ("sse_cut", "An idle stream is cut off: a proxy's time-out is shorter than the heartbeat interval.",
        "Raise the time-out above `limits.ping_interval` (nginx: `proxy_read_timeout 75s;` on this route too)."),
    ClockSkew => ("clock_skew", "The clocks of the server and of the doctor's machine differ.",
        "Run NTP on both. If `Date` comes from a proxy, check the clock of the gateway's machine too: the gateway \
         uses that one for tokens."),
    TokenExpired => ("token_expired", "By the server's clock the token has expired.", "Get a new token."),
    TokenNotYet => ("token_not_yet", "By the server's clock the token is not valid yet.",
        "Run NTP on the issuer and the gateway; `auth.leeway` tolerates small differences."),
    IssuerClock => ("issuer_clock", "The token was issued in the future: the issuer's clock is ahead.",
        "Run NTP on the issuer and the gateway; `auth.leeway` tolerates small differences."),
    TokenMilliseconds => ("token_milliseconds", "The token's `exp` is in milliseconds.",
        "Let the issuer write seconds (RFC 7519 section 2)."),
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
