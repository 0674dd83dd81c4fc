//! Where publications go: Redis, plainly or durably, or the gateway's HTTP API. A batch is one
//! round trip, and every answer is looked at.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

/// Longer than any pause that is not a failure.
const TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, Clone)]
pub enum SinkConfig {
    Redis { url: String, prefix: String, durable: bool },
    Api { url: String, key: String },
}

pub enum Sink {
    Redis { connection: Box<redis::Connection>, prefix: String, durable: bool },
    Api { reader: BufReader<TcpStream>, host: String, path: String, key: String },
}

pub struct Publication {
    pub channel: String,
    pub payload: Vec<u8>,
}

impl Sink {
    pub fn open(config: &SinkConfig) -> Result<Self> {
        match config {
            SinkConfig::Redis { url, prefix, durable } => {
                let connection = redis_connection(url)?;
                let (prefix, durable) = (prefix.clone(), *durable);
                Ok(Sink::Redis { connection: Box::new(connection), prefix, durable })
            }
            SinkConfig::Api { url, key } => {
                let rest = url.strip_prefix("http://").with_context(|| {
                    format!("--api {url}: write it like http://127.0.0.1:8000 (TLS is not supported here)")
                })?;
                let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));

                let address =
                    if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
                let stream = TcpStream::connect(&address)
                    .with_context(|| format!("--api {url}: cannot connect to {address}"))?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(TIMEOUT))?;

                let (host, key) = (host.to_owned(), key.clone());
                let path = format!("{}/api/publish", path.trim_end_matches('/'));
                Ok(Sink::Api { reader: BufReader::new(stream), host, path, key })
            }
        }
    }

    pub fn publish(&mut self, batch: &[Publication]) -> Result<()> {
        match self {
            Sink::Redis { connection, prefix, durable } => {
                let mut pipeline = redis::pipe();
                for Publication { channel, payload } in batch {
                    let channel = format!("{prefix}{channel}");
                    if *durable {
                        pipeline
                            .cmd("FCALL")
                            .arg("tollgate_publish")
                            .arg(1)
                            .arg(channel)
                            .arg(payload);
                    } else {
                        pipeline.cmd("PUBLISH").arg(channel).arg(payload);
                    }
                }

                // A pipeline's error names the command that failed.
                let answers: redis::RedisResult<Vec<redis::Value>> = pipeline.query(connection);
                answers.map(drop).map_err(|error| match error.code() {
                    Some("ERR") if *durable => anyhow!(
                        "Redis: {error}. --durable needs Redis 7 or newer, and a gateway that has loaded \
                         its function there"
                    ),
                    _ => anyhow!("publishing to Redis failed: {error}"),
                })
            }
            Sink::Api { reader, host, path, key } => {
                let mut requests = Vec::new();
                for Publication { channel, payload } in batch {
                    let channel = serde_json::to_string(channel)?;
                    let length = channel.len() + payload.len() + r#"{"channel":,"data":}"#.len();
                    write!(
                        requests,
                        "POST {path} HTTP/1.1\r\nHost: {host}\r\nX-API-Key: {key}\r\n\
                         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n\
                         {{\"channel\":{channel},\"data\":"
                    )?;
                    requests.extend_from_slice(payload);
                    requests.push(b'}');
                }

                reader.get_mut().write_all(&requests).context("publishing over HTTP failed")?;
                for _ in batch {
                    answer(reader).context("publishing over HTTP failed")?;
                }
                Ok(())
            }
        }
    }
}

pub fn redis_connection(url: &str) -> Result<redis::Connection> {
    let client = redis::Client::open(url).with_context(|| {
        format!("--redis {}: write it like redis://127.0.0.1:6379", redacted(url))
    })?;
    let connection = client
        .get_connection_with_timeout(TIMEOUT)
        .map_err(|error| anyhow!("--redis {}: {error}. Is it running?", redacted(url)))?;
    connection.set_read_timeout(Some(TIMEOUT))?;
    Ok(connection)
}

/// The URL without its user and password.
pub fn redacted(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://***@{host}"),
        _ => url.to_owned(),
    }
}

/// Reads one HTTP/1.1 answer with a Content-Length, as the gateway sends it.
fn answer(reader: &mut BufReader<TcpStream>) -> Result<()> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).unwrap_or_default().to_owned();

    let mut length = 0;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            bail!("the connection was closed");
        }
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().context("Content-Length")?;
        }
    }

    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let text = String::from_utf8_lossy(&body);

    match status.as_str() {
        "200" if !text.contains(r#""error""#) => Ok(()),
        "401" => bail!("status 401: --api-key is none of the gateway's (api.keys)"),
        status => bail!("status {status}: {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(redacted("redis://user:p@ss@host:1/0"), "redis://***@host:1/0");
        assert_eq!(redacted("redis://host:1"), "redis://host:1");
    }
}
