//! Which client subscribes to which channel, and which number each channel has in this run.

use crate::token::Tokens;

/// Channels that many clients share have the numbers from 0; each client's own channel follows.
pub struct Topology {
    /// The name of a shared channel, with {n} for its number, and how many there are.
    pub shared: Option<(String, usize)>,
    /// The name of a client's own channel, with {user} and {n} for the client.
    pub own: Option<String>,
    /// The server subscribes every client to its own channel (or without one to the shared one).
    pub auto: bool,
    /// If set, the first so many clients have only the shared channel, and the others only
    /// their own.
    pub bystanders: Option<usize>,
    pub clients: usize,
}

impl Topology {
    pub fn shared_channels(&self) -> usize {
        self.shared.as_ref().map_or(0, |(_, count)| *count)
    }

    pub fn channels(&self) -> usize {
        self.shared_channels() + if self.own.is_some() { self.clients } else { 0 }
    }

    pub fn name(&self, channel: usize, tokens: &Tokens) -> String {
        match (&self.shared, &self.own) {
            (Some((template, count)), _) if channel < *count => {
                template.replace("{n}", &channel.to_string())
            }
            (_, Some(template)) => {
                let client = channel - self.shared_channels();
                template.replace("{user}", &tokens.user(client)).replace("{n}", &client.to_string())
            }
            _ => String::new(),
        }
    }

    pub fn is_bystander(&self, client: usize) -> bool {
        self.bystanders.is_some_and(|bystanders| client < bystanders)
    }

    /// The load thread that has the client. Bystanders have the first one to themselves: what they
    /// wait for must not be a driver that is busy with returning clients.
    pub fn thread_of(&self, client: usize, threads: usize) -> usize {
        match self.bystanders {
            Some(_) if threads > 1 && self.is_bystander(client) => 0,
            Some(_) if threads > 1 => 1 + client % (threads - 1),
            _ => client % threads,
        }
    }

    pub fn shared_of(&self, client: usize) -> Option<usize> {
        let (_, count) = self.shared.as_ref()?;
        (self.bystanders.is_none() || self.is_bystander(client)).then_some(client % count)
    }

    pub fn own_of(&self, client: usize) -> Option<usize> {
        self.own.as_ref()?;
        (!self.is_bystander(client)).then_some(self.shared_channels() + client)
    }

    /// The channels that the client has to ask for.
    pub fn to_subscribe(&self, client: usize, tokens: &Tokens) -> Vec<String> {
        let shared = self.shared_of(client).filter(|_| !self.auto || self.own.is_some());
        let own = self.own_of(client).filter(|_| !self.auto);
        shared.into_iter().chain(own).map(|channel| self.name(channel, tokens)).collect()
    }

    /// The number of deliveries that one publication makes.
    pub fn subscribers(&self, channel: usize) -> usize {
        match &self.shared {
            Some((_, count)) if channel < *count => {
                let all = self.bystanders.unwrap_or(self.clients);
                all / count + usize::from(channel < all % count)
            }
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(bystanders: Option<usize>) -> Topology {
        let shared = Some(("post:{n}".to_owned(), 2));
        let own = Some("user:{user}".to_owned());
        Topology { shared, own, auto: true, bystanders, clients: 5 }
    }

    #[test]
    fn every_client_has_its_own_and_one_of_the_shared() {
        let topology = topology(None);
        assert_eq!(topology.channels(), 7);
        assert_eq!((topology.shared_of(3), topology.own_of(3)), (Some(1), Some(5)));
        assert_eq!(topology.name(1, &Tokens::None), "post:1");
        assert_eq!(topology.name(5, &Tokens::None), "user:u3");
        assert_eq!(topology.to_subscribe(3, &Tokens::None), ["post:1"]);
        assert_eq!((topology.subscribers(0), topology.subscribers(1)), (3, 2));
        assert_eq!(topology.subscribers(6), 1);
    }

    #[test]
    fn bystanders_have_only_the_shared() {
        let topology = topology(Some(2));
        assert_eq!((topology.shared_of(1), topology.own_of(1)), (Some(1), None));
        assert_eq!((topology.shared_of(2), topology.own_of(2)), (None, Some(4)));
        assert_eq!(topology.subscribers(0), 1);
        assert!(topology.to_subscribe(2, &Tokens::None).is_empty());
    }
}
