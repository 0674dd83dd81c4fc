//! The reasons of `tollgate_rejected_total`.

/// What was turned away, besides tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    Connections,
    PerUser,
    PerIp,
    HttpConnections,
    OpenFiles,
    Rate,
    Channels,
    MessageSize,
    PublicationSize,
    PublicationInvalid,
    PublicationType,
    Origin,
    BadRequest,
    ForeignClient,
    Draining,
    ApiKey,
    Timeout,
}

impl Rejected {
    pub(super) const ALL: [Self; 17] = [
        Self::Connections,
        Self::PerUser,
        Self::PerIp,
        Self::HttpConnections,
        Self::OpenFiles,
        Self::Rate,
        Self::Channels,
        Self::MessageSize,
        Self::PublicationSize,
        Self::PublicationInvalid,
        Self::PublicationType,
        Self::Origin,
        Self::BadRequest,
        Self::ForeignClient,
        Self::Draining,
        Self::ApiKey,
        Self::Timeout,
    ];

    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Connections => "limit_connections",
            Self::PerUser => "limit_per_user",
            Self::PerIp => "limit_per_ip",
            Self::HttpConnections => "limit_http_connections",
            Self::OpenFiles => "limit_open_files",
            Self::Rate => "rate",
            Self::Channels => "limit_channels",
            Self::MessageSize => "message_size",
            Self::PublicationSize => "publication_size",
            Self::PublicationInvalid => "publication_invalid",
            Self::PublicationType => "publication_type",
            Self::Origin => "origin",
            Self::BadRequest => "bad_request",
            Self::ForeignClient => "foreign_client",
            Self::Draining => "draining",
            Self::ApiKey => "api_key",
            Self::Timeout => "timeout",
        }
    }
}
