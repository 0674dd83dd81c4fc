//! How the clients of other services are recognised.
//!
//! Pure.

use axum::http::request::Parts;

use crate::http::headers::{offered, parameters};

/// The service that a client belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Client {
    Centrifuge,
    /// pusher-js, and laravel-echo, which uses it.
    Pusher,
    /// phoenix and supabase-js.
    Phoenix,
    ActionCable,
    Ably,
    SocketIo,
    EngineIo,
    GraphQl,
}

impl Client {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Centrifuge => "centrifuge",
            Self::Pusher => "pusher-js",
            Self::Phoenix => "phoenix",
            Self::ActionCable => "actioncable",
            Self::Ably => "ably",
            Self::SocketIo => "socket.io",
            Self::EngineIo => "engine.io",
            Self::GraphQl => "graphql-ws",
        }
    }

    /// The subprotocols of which the client wants one selected.
    fn protocols(self) -> &'static [&'static str] {
        match self {
            Self::Centrifuge => &["centrifuge-protobuf", "centrifuge-json"],
            Self::Phoenix => &["phoenix"],
            Self::ActionCable => &["actioncable-v1-json"],
            Self::GraphQl => &["graphql-transport-ws", "graphql-ws"],
            Self::Pusher | Self::Ably | Self::SocketIo | Self::EngineIo => &[],
        }
    }

    /// Recognises a client by its subprotocol, on whatever path.
    pub(in crate::http) fn by_protocol(request: &Parts) -> Option<Self> {
        let known = [Self::Centrifuge, Self::ActionCable, Self::GraphQl, Self::Phoenix];
        known.into_iter().find(|client| client.offered(request).is_some())
    }

    /// The subprotocol that the request offers and this client understands.
    pub(super) fn offered(self, request: &Parts) -> Option<&'static str> {
        let wanted = self.protocols().iter();
        wanted.copied().find(|protocol| offered(&request.headers).any(|o| o == *protocol))
    }

    /// Recognises a client by its path, or by its subprotocol.
    pub(super) fn recognise(request: &Parts) -> Option<Self> {
        let has = |name| parameters(&request.uri, name).next().is_some();
        let path = request.uri.path();

        // Some services are mounted below a path of the application's own.
        let ends = |end: &str| path.trim_end_matches('/').ends_with(end);

        let by_path = if path.starts_with("/connection/") || path == "/emulation" {
            Some(Self::Centrifuge)
        } else if path.starts_with("/app/") && has("protocol") {
            Some(Self::Pusher)
        } else if ends("/socket.io") {
            Some(Self::SocketIo)
        } else if ends("/engine.io") {
            Some(Self::EngineIo)
        } else if has("vsn") && (ends("/websocket") || ends("/longpoll")) {
            Some(Self::Phoenix)
        } else if ends("/cable") {
            Some(Self::ActionCable)
        } else if path == "/" && has("v") && has("agent") {
            Some(Self::Ably)
        } else {
            None
        };

        by_path.or_else(|| Self::by_protocol(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recognised(uri: &str, protocols: &str) -> Option<Client> {
        let mut request = axum::http::Request::builder().uri(uri);
        if !protocols.is_empty() {
            request = request.header("sec-websocket-protocol", protocols);
        }
        Client::recognise(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn clients_are_known_by_their_paths_and_protocols() {
        for (uri, protocols, client) in [
            ("/connection/websocket", "", Some(Client::Centrifuge)),
            ("/anything", "centrifuge-protobuf", Some(Client::Centrifuge)),
            ("/app/KEY?protocol=7&client=js&version=8.4.0", "", Some(Client::Pusher)),
            ("/socket/websocket?vsn=2.0.0", "", Some(Client::Phoenix)),
            ("/live/websocket?vsn=2.0.0", "", Some(Client::Phoenix)),
            ("/realtime/v1/websocket?apikey=a&vsn=1.0.0", "", Some(Client::Phoenix)),
            ("/cable", "actioncable-v1-json, actioncable-unsupported", Some(Client::ActionCable)),
            ("/cable", "", Some(Client::ActionCable)),
            ("/?key=a.b&format=json&v=5&agent=ably-js%2F2", "", Some(Client::Ably)),
            ("/socket.io/?EIO=4&transport=polling", "", Some(Client::SocketIo)),
            ("/app/socket.io/?EIO=3&transport=websocket", "", Some(Client::SocketIo)),
            ("/engine.io/?EIO=4&transport=polling", "", Some(Client::EngineIo)),
            ("/graphql", "graphql-transport-ws", Some(Client::GraphQl)),
            ("/", "", None),
            ("/app/page", "", None),
            ("/socket/websocket", "", None),
            ("/wss", "tollgate, bearer.x", None),
        ] {
            assert_eq!(recognised(uri, protocols), client, "{uri} {protocols}");
        }
    }
}
