//! `tollgate doctor`: examines a deployment from outside, as a client meets it.
//!
//! The handshake is made by hand (`wire`), because the doctor looks for what proxies do to it;
//! after the answer 101 a client library takes over. `causes` is the table of possible causes;
//! `report` prints, and hides secrets.

mod api;
mod causes;
mod clock;
mod probes;
mod report;
mod session;
mod stream;
mod target;
mod upgrade;
mod wire;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::config::Sources;
use crate::terminal::{complain, print};
use api::Api;
pub use causes::markdown;
use causes::{Cause, Step};
use report::{Checked, Report, Secrets, Trouble};
use session::Socket;
use target::{Line, Target, connect, resolve};

/// Exit status when nothing could be examined.
const UNTRIED: u8 = 2;

/// How long a socket without a token waits for the greeting, which comes if no token is needed.
const GREETING: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub struct Probe {
    /// The WebSocket URL that clients use: wss://host/ws
    #[arg(long, value_name = "URL")]
    url: String,
    /// File with a token, or - for standard input. The token is never printed
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file with the authorities to trust instead of the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Connect as a web page of this origin does: `https://app.example.com`
    #[arg(long)]
    origin: Option<String>,
    /// Subscribe to this channel
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,
    /// URL of the server API [default: on the host of --url]
    #[arg(long, value_name = "URL")]
    api: Option<String>,
    /// File with a server API key, to publish one event with [default: $TOLLGATE_API_KEY]
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// How long to stay idle, to reveal the time-outs of proxies; 0s: not at all
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    idle: String,
    /// How long to wait for each answer
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    timeout: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The plan of an examination, read from the arguments and checked.
struct Plan {
    line: Line,
    token: Option<String>,
    origin: Option<String>,
    channel: Option<String>,
    api: Option<Api>,
    idle: Duration,
}

/// Runs `tollgate doctor`.
pub fn run(args: &Probe) -> anyhow::Result<ExitCode> {
    let mut secrets = Secrets::default();
    let plan = match args.plan(&mut secrets) {
        Ok(plan) => plan,
        Err(why) => {
            if args.json {
                let _ = print(&format!("{}\n", json!({ "result": "untried", "error": why })));
            }
            complain(&format!("tollgate doctor: {why}\n"));
            return Ok(ExitCode::from(UNTRIED));
        }
    };

    let mut report = Report::new(args.json, secrets);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(examine(plan, &mut report));
    Ok(report.finish(&args.url))
}

/// Reads a secret on one line from a file or standard input.
fn secret(flag: &str, path: &Path) -> Result<String, String> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };

    let text = text.map_err(|e| format!("{flag}: {} cannot be read: {e}", path.display()))?;

    let text = text.trim().to_owned();
    if text.is_empty() || text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(format!(
            "{flag}: {} does not contain exactly one word on one line",
            path.display()
        ));
    }
    Ok(text)
}

impl Probe {
    fn plan(&self, secrets: &mut Secrets) -> Result<Plan, String> {
        let duration = |flag: &str, text: &str| {
            humantime::parse_duration(text).map_err(|e| format!("{flag}: {e}"))
        };

        let patience = duration("--timeout", &self.timeout)?;
        let idle = duration("--idle", &self.idle)?;
        let target = Target::parse(&self.url)?;
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|e| format!("--ca: {} cannot be read: {e}", path.display()))
        };

        let ca = self.ca.as_ref().map(read).transpose()?;
        let token =
            self.token_file.as_ref().map(|path| secret("--token-file", path)).transpose()?;

        if self.origin.as_ref().is_some_and(|o| o.contains(char::is_control)) {
            return Err("--origin contains control characters".to_owned());
        }

        let key = match &self.api_key_file {
            Some(path) => Some(secret("--api-key-file", path)?),
            None => Sources::of_process(None).variable("TOLLGATE_API_KEY").map(str::to_owned),
        };

        for text in token.iter().chain(&key) {
            secrets.add(text);
        }

        if self.api.is_some() && key.is_none() {
            return Err("--api needs a key: --api-key-file or $TOLLGATE_API_KEY".to_owned());
        }

        let ca = ca.as_deref();
        let api = key.map(|key| Api::new(self.api.as_deref(), &target, key, patience, ca));
        Ok(Plan {
            line: Line::new(target, patience, ca)?,
            token,
            origin: self.origin.clone(),
            channel: self.channel.clone(),
            api: api.transpose()?,
            idle,
        })
    }
}

/// Takes all steps, each as far as those before it allow.
async fn examine(mut plan: Plan, report: &mut Report) {
    if reach(&mut plan.line, report).await.is_none() {
        return;
    }

    let line = &plan.line;
    let (upgraded, clocks) = probes::upgrade(line).await;
    let mut session = None;
    if let Some(first) = report.note(Step::Upgrade, upgraded) {
        session = sockets(&plan, first, report).await;
    }

    let listened = match &mut session {
        Some(session) => converse(&plan, session, report).await,
        None => {
            report.skip(Step::Subscribe, "no open connection");
            report.skip(Step::Publish, "no open connection");
            false
        }
    };

    let channel = plan.channel.as_deref().filter(|_| listened);
    rest(&plan, session, channel, report).await;

    match clocks {
        Some(clocks) => {
            report.note(Step::Clock, clock::compare(&clocks, plan.token.as_deref()));
        }
        None => report.skip(Step::Clock, "the answer has no Date header"),
    }
}

/// Goes from the name to a connection.
async fn reach(line: &mut Line, report: &mut Report) -> Option<()> {
    let addresses = report.note(Step::Dns, resolve(&line.target, line.patience).await)?;
    let connected = connect(&addresses, line.patience).await;
    let (address, stream) = report.note(Step::Tcp, connected)?;
    line.addresses = vec![address];

    if !line.target.secure {
        report
            .skip(Step::Tls, "the URL does not use TLS: tokens and events can be read on the way");
        return Some(());
    }

    let mut secured = line.secure(stream).await.map(|(_, said)| ((), said));
    let usable = secured.is_ok();
    if let Some(trouble) = line.ends_soon().filter(|_| usable) {
        secured = Err(trouble);
    }
    report.note(Step::Tls, secured);
    usable.then_some(())
}

/// Examines handshakes. Returns a session if there is a token or none is needed.
async fn sockets(plan: &Plan, mut first: Socket, report: &mut Report) -> Option<Socket> {
    let line = &plan.line;
    let greeted = match plan.token {
        Some(_) => None,
        None => first.greeted(GREETING).await.ok(),
    };

    report.note(Step::Query, probes::query(line).await);
    let carried = probes::carriers(line).await;
    let by_subprotocol =
        carried.as_ref().is_err_and(|trouble| trouble.cause == Cause::AuthorizationDropped);
    report.note(Step::Carriers, carried);

    match &plan.origin {
        Some(origin) => {
            report.note(Step::Origin, probes::origin(line, origin).await);
        }
        None => report.skip(
            Step::Origin,
            "no --origin: the doctor did not check whether web pages may connect",
        ),
    }

    if let Some(token) = &plan.token {
        first.close().await;
        return report.note(Step::Token, probes::token(line, token, by_subprotocol).await);
    }

    match greeted {
        Some((_, said)) => {
            report.note(Step::Token, Ok((first, format!("no token needed: {said}"))))
        }
        None => {
            first.close().await;
            report.skip(Step::Token, "no --token-file");
            None
        }
    }
}

/// Subscribes and publishes. Returns true if the channel can be listened to.
async fn converse(plan: &Plan, session: &mut Socket, report: &mut Report) -> bool {
    let patience = plan.line.patience;
    let mut listened = false;
    match &plan.channel {
        Some(channel) => {
            let subscribed = session.subscribe(channel, patience).await;
            listened = report.note(Step::Subscribe, subscribed).is_some();
        }
        None => report.skip(Step::Subscribe, "no --channel"),
    }

    match &plan.api {
        None => report.skip(Step::Publish, "no --api-key-file"),
        Some(_) if session.channels.is_empty() => {
            report.skip(Step::Publish, "no channel to publish on: use --channel");
        }
        Some(api) => publish(api, session, patience, report).await,
    }

    listened
}

/// Makes the round trip if a gateway answers; no other server gets the key.
async fn publish(api: &Api, session: &mut Socket, patience: Duration, report: &mut Report) {
    match api.proves_itself().await {
        Ok(()) => {
            report.note(Step::Publish, api.round_trip(session, patience).await);
        }
        Err((Some(cause), found)) => {
            report.note::<()>(Step::Publish, Err(Trouble::new(cause, found)));
        }
        Err((None, found)) => {
            let why = format!(
                "no server API on the host of --url, which is right if only backends can reach \
                 it: give its address with --api ({found})"
            );
            report.skip(Step::Publish, &why);
        }
    }
}

/// Opens the stream, and lets socket and stream idle at the same time.
async fn rest(plan: &Plan, session: Option<Socket>, channel: Option<&str>, report: &mut Report) {
    let line = &plan.line;
    let idle = plan.idle;
    let bearer = plan.token.as_ref().map(|token| format!("Bearer {token}")).unwrap_or_default();

    let streaming = async {
        match stream::open(line, &bearer, channel).await {
            Ok((stream, said)) if idle.is_zero() => {
                drop(stream);
                (Ok(((), said)), None)
            }
            Ok((stream, said)) => (Ok(((), said)), Some(stream.idles(idle).await)),
            Err(trouble) => (Err(trouble), None),
        }
    };

    let idling = async {
        match session {
            Some(mut socket) if !idle.is_zero() => Some(socket.idles(idle, line.patience).await),
            Some(_) | None => None,
        }
    };

    let ((streamed, stream_idled), idled): ((Checked<()>, _), _) = tokio::join!(streaming, idling);

    let refused = streamed.as_ref().is_err_and(|trouble| trouble.cause == Cause::SseRefused);
    if plan.token.is_none() && refused {
        report.skip(Step::Sse, "no --token-file, but the gateway answers, so the path is right");
    } else {
        report.note(Step::Sse, streamed);
    }

    let mut stream_idled = stream_idled;
    if let (Some(Ok((first_ping, _))), Some(Ok((beats, said)))) = (&idled, &stream_idled)
        && stream::holds_back(*beats, *first_ping, idle)
    {
        let found = format!("no heartbeat, although the WebSocket has had its first ping: {said}");
        stream_idled = Some(Err(Trouble::new(Cause::SseBuffered, found)));
    }

    let why = if idle.is_zero() { "--idle is 0" } else { "no connection is open that could idle" };
    conclude(Step::Idle, idled, why, report);
    conclude(Step::SseIdle, stream_idled, why, report);
}

/// Reports how the idling ended, or why there was none.
fn conclude<T>(step: Step, idled: Option<Checked<T>>, why: &str, report: &mut Report) {
    match idled {
        Some(idled) => {
            report.note(step, idled);
        }
        None => report.skip(step, why),
    }
}
