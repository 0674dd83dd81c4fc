//! What the gateways of a round are connected to, and where its publishers find it.

use std::sync::Arc;

use super::proxy::Proxy;
use super::publisher::Place;
use super::rows::Setup;
use super::servers::{Cluster, Followed, Moving, Server, USER, Watched};

pub enum Backend {
    Alone(Server),
    Followed(Followed),
    Limited(Server),
    Proxied(Server, Proxy),
    Moving(Moving),
    Watched(Watched),
    Cluster(Cluster),
}

impl Backend {
    pub async fn start(setup: Setup) -> Self {
        match setup {
            Setup::Alone(lines) => Self::Alone(Server::start(lines).await),
            Setup::Proxied => {
                let server = Server::start(&[]).await;
                let proxy = Proxy::start(server.address()).await;
                Self::Proxied(server, proxy)
            }
            Setup::Followed => Self::Followed(Followed::start().await),
            Setup::Limited => {
                let server = Server::start(&[]).await;
                server.limit().await;
                Self::Limited(server)
            }
            Setup::Moving => Self::Moving(Moving::start().await),
            Setup::Sentinel => Self::Watched(Watched::start().await),
            Setup::Cluster => Self::Cluster(Cluster::start().await),
        }
    }

    pub fn url(&self) -> String {
        match self {
            Self::Alone(server) => format!("redis://{}", server.address()),
            Self::Followed(followed) => format!("redis://{}", followed.master.address()),
            Self::Limited(server) => format!("redis://{USER}@{}", server.address()),
            Self::Proxied(_, proxy) => format!("redis://{}", proxy.address),
            Self::Moving(moving) => format!("redis://{}", moving.proxy.address),
            Self::Watched(watched) => watched.url(),
            Self::Cluster(cluster) => cluster.url(),
        }
    }

    pub fn place(&self) -> Place {
        match self {
            Self::Alone(server) | Self::Limited(server) | Self::Proxied(server, _) => {
                Place::Fixed(server.address())
            }
            Self::Followed(followed) => Place::Fixed(followed.master.address()),
            Self::Moving(moving) => Place::Named(Arc::clone(&moving.leads_to)),
            Self::Watched(watched) => Place::Sentinel(watched.addresses()),
            Self::Cluster(cluster) => Place::Cluster(cluster.addresses()),
        }
    }
}
