//! `tollgate token`: mints a token for a test, asks the token diagnosis about one, compares keys.

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use super::file::{File, problems, sources};
use crate::app;
use crate::auth::diagnose::{self, NamedSecret};
use crate::auth::keys::SignError;
use crate::auth::{Algorithm, Encoding, Key, KeySet, Verifier, algorithm, fingerprint, secret};
use crate::clock::unix_now;
use crate::config::{self, Loaded, Problem, Sources};
use crate::terminal::{complain, print};

/// Longest input that is read, above the limit of any token: the gateway refuses longer ones as
/// `oversize`.
const MAX_INPUT: u64 = 1 << 20;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Sign a token that this configuration accepts, with a configured key, for tests.
    Mint(Mint),
    /// Say whether the gateway would accept a token, and if not, why and which side has to change what.
    ///
    /// Reads the token from standard input, which keeps it out of the shell history. Exit status: 0 if
    /// the token is accepted, 1 if it is refused, 78 if the configuration cannot be used.
    Check(Check),
    /// Print the fingerprints of the configured keys, and commands that print those of the issuer.
    Fingerprint(File),
}

#[derive(Debug, Args)]
pub(super) struct Mint {
    #[command(flatten)]
    file: File,
    /// The user (claim `sub`)
    #[arg(short, long)]
    user: String,
    /// How long the token is valid
    #[arg(short, long, value_name = "DURATION", default_value = "1h")]
    expires_in: String,
    /// Sign with the key of this kid [default: the first secret]
    #[arg(long)]
    kid: Option<String>,
    /// Sign with this algorithm [default: the key's first]
    #[arg(long)]
    alg: Option<String>,
    /// Another claim, as name=JSON or name=text; may be repeated
    #[arg(long = "claim", value_name = "NAME=VALUE")]
    claims: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Check {
    #[command(flatten)]
    file: File,
    /// Time of the check, in Unix seconds [default: now]
    #[arg(long, value_name = "UNIX")]
    now: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Also try the secret in this environment variable; may be repeated
    #[arg(long, value_name = "NAME")]
    also_secret_env: Vec<String>,
    /// Also try the secret in this file; may be repeated
    #[arg(long, value_name = "FILE")]
    also_secret_file: Vec<PathBuf>,
}

pub(super) fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Mint(args) => mint(args),
        Command::Check(args) => check(args),
        Command::Fingerprint(file) => fingerprints(file),
    }
}

/// Reads the configuration. Weak secrets are allowed and warned about, because these commands are
/// run if something is wrong.
fn load(file: &File) -> Result<Loaded, ExitCode> {
    let loaded = config::load(&Sources { dev: true, ..sources(file) });
    let loaded = loaded.map_err(|found| problems(&found))?;
    if loaded.policy.verifier.keys().is_empty() && loaded.policy.verifier.session().is_none() {
        let message = if loaded.config.auth.anonymous {
            "no key is configured and only anonymous clients are accepted, so every token is \
             refused"
        } else {
            "no key is configured: pass the gateway's configuration with --config"
        };
        return Err(problems(&[Problem {
            path: "auth.keys".to_owned(),
            origin: None,
            message: message.to_owned(),
        }]));
    }
    Ok(loaded)
}

fn mint(args: &Mint) -> anyhow::Result<ExitCode> {
    let loaded = match config::load(&sources(&args.file)) {
        Ok(loaded) => loaded,
        Err(found) => return Ok(problems(&found)),
    };

    let verifier = &loaded.policy.verifier;
    let now = unix_now();
    let key = signing_key(verifier, args.kid.as_deref(), now)?;
    let alg = match &args.alg {
        Some(name) => Some(Algorithm::named(name).ok_or_else(|| {
            let all = algorithm::names(key.algs());
            anyhow::anyhow!("--alg {name}: there is no such algorithm; the key supports {all}")
        })?),
        None => None,
    };

    let valid = humantime::parse_duration(&args.expires_in)
        .map_err(|e| anyhow::anyhow!("--expires-in: {e}"))?;
    let mut claims = verifier.claims_for(&args.user, now, valid.as_secs());
    for claim in &args.claims {
        let (name, text) = claim
            .split_once('=')
            .ok_or_else(|| anyhow::anyhow!("--claim {claim}: write it as name=value"))?;
        let value = serde_json::from_str::<Value>(text).unwrap_or_else(|_| Value::from(text));
        claims.insert(name.to_owned(), value);
    }

    let token = key.sign(&Value::Object(claims.clone()), alg)?;
    if let Some(refused) = refusal(verifier, &token, (&args.user, &claims), now) {
        complain(&format!("warning: the gateway refuses this token: {refused}\n"));
    }
    print(&format!("{token}\n"))
}

fn signing_key<'v>(verifier: &'v Verifier, kid: Option<&str>, now: u64) -> anyhow::Result<&'v Key> {
    let keys = verifier.keys();

    keys.signing(kid, now).map_err(|e| {
        let kids: Vec<_> = keys.fixed().iter().filter_map(Key::kid).map(diagnose::shown).collect();
        match (e, kid) {
            (SignError::NoKey, _) if verifier.session().is_some() => anyhow::anyhow!(
                "this configuration accepts session cookies only, which only the application can \
                 create: sign in there, or add [[auth.keys]] with a secret"
            ),
            (SignError::NoSuchKey, Some(kid)) if kids.is_empty() => {
                anyhow::anyhow!("--kid {kid}: {e}, because none of the keys has one")
            }
            (SignError::NoSuchKey, Some(kid)) => {
                anyhow::anyhow!("--kid {kid}: {e}; configured are {}", kids.join(", "))
            }
            (e, Some(kid)) => anyhow::anyhow!("--kid {kid}: {e}"),
            (e, None) => anyhow::anyhow!("{e}"),
        }
    })
}

/// Says why the configuration that minted a token does not accept it. The cause is in the
/// arguments of `mint`.
fn refusal(
    verifier: &Verifier,
    token: &str,
    (user, claims): (&str, &Map<String, Value>),
    now: u64,
) -> Option<String> {
    // A subscription token opens a channel, not a connection.
    let channel = claims.get("channel").and_then(Value::as_str).and_then(|name| name.parse().ok());
    if let Some(channel) = &channel {
        let found = verifier.verify_subscription(token, channel, user, now);
        return found.err().map(|reason| format!("{reason}. {}", reason.meaning()));
    }

    let report = diagnose::examine(verifier, token, &[], now);
    let reason = report.reason?;
    Some(report.advice.map_or_else(|| reason.to_owned(), |advice| format!("{reason}. {advice}")))
}

fn check(args: &Check) -> anyhow::Result<ExitCode> {
    let loaded = match load(&args.file) {
        Ok(loaded) => loaded,
        Err(code) => return Ok(code),
    };

    let extra = match named_secrets(args) {
        Ok(extra) => extra,
        Err(problem) => return Ok(problems(&[problem])),
    };

    if std::io::stdin().is_terminal() {
        complain("paste the token, then press Ctrl-D:\n");
    }
    let mut token = Vec::new();
    std::io::stdin().take(MAX_INPUT).read_to_end(&mut token)?;
    let token = String::from_utf8_lossy(&token);
    // A shell or an editor puts a line break behind the token, which is not part of it.
    let token = token.strip_suffix('\n').unwrap_or(&token);
    let token = token.strip_suffix('\r').unwrap_or(token);

    let mut verifier = loaded.policy.verifier;
    let unfetched = fetch_key_sets(&loaded.config.auth.jwks, verifier.keys_mut())?;

    let mut report = diagnose::examine(&verifier, token, &extra, args.now.unwrap_or_else(unix_now));
    let oddities = loaded.policy.warnings.iter().map(ToString::to_string);
    report.warnings.extend(oddities.chain(unfetched));

    print(&if args.json {
        format!("{}\n", serde_json::to_string(&report)?)
    } else {
        report.text()
    })?;

    Ok(ExitCode::from(u8::from(!report.accepted())))
}

/// Fetches the key sets once, as the gateway would. Returns a message for each set that could
/// not be fetched.
fn fetch_key_sets(section: &config::Jwks, keys: &mut KeySet) -> anyhow::Result<Vec<String>> {
    if keys.remotes().is_empty() {
        return Ok(Vec::new());
    }
    let jwks = app::jwks_of(section)?;
    jwks.adopt(keys);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(jwks.fetch_all()))
}

fn named_secrets(args: &Check) -> Result<Vec<NamedSecret>, Problem> {
    let problem = |path: &str, message| Problem { path: path.to_owned(), origin: None, message };
    let all = sources(&args.file);
    let mut out = Vec::new();

    for name in &args.also_secret_env {
        let text = all.variable(name).ok_or_else(|| {
            problem("--also-secret-env", format!("the environment variable {name} is not set"))
        })?;
        out.push(NamedSecret { name: name.clone(), text: text.to_owned() });
    }

    for path in &args.also_secret_file {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|e| problem("--also-secret-file", format!("{shown} cannot be read: {e}")))?;
        out.push(NamedSecret { name: shown, text: text.trim_end_matches(['\r', '\n']).to_owned() });
    }

    Ok(out)
}

fn fingerprints(file: &File) -> anyhow::Result<ExitCode> {
    let loaded = match load(file) {
        Ok(loaded) => loaded,
        Err(code) => return Ok(code),
    };
    let verifier = &loaded.policy.verifier;
    let mut out = String::new();

    for key in verifier.keys().fixed() {
        out.push_str(&line(key));
    }

    let cookies = verifier.session().map_or(&[][..], |session| &session.secrets);
    for (i, text) in cookies.iter().enumerate() {
        let print = fingerprint::of_secret(text.as_bytes());
        let what = secret::describe(text);
        out.push_str(&format!("{print}  auth.session_cookie, secret {}  {what}\n", i + 1));
    }

    for remote in verifier.keys().remotes() {
        out.push_str(&format!("{}: these keys come from the issuer itself\n", remote.shown_url()));
    }

    for warning in &loaded.policy.warnings {
        complain(&format!("warning: {warning}\n"));
    }

    if verifier.keys().first_secret().is_some() || !cookies.is_empty() {
        out.push_str(
            "\nTo print the issuer's fingerprint, run one of these commands where the issuer's \
             process runs, with the name of its variable instead of NEXTAUTH_SECRET:\n",
        );
        for (name, command) in fingerprint::RECIPES {
            out.push_str(&format!("  {name}:\n    {command}\n"));
        }
    }
    print(&out)
}

fn line(key: &Key) -> String {
    let kid = key.kid().map_or_else(String::new, |k| format!("  kid {}", diagnose::shown(k)));
    let what = match key.secret() {
        // The recipes take the text. If we decode it, another fingerprint is no sign of drift.
        Some(secret) if secret.encoding() != Encoding::Utf8 => format!(
            "secret of {}, decoded ({}); fingerprint of its text {}",
            secret::describe(secret.text()),
            secret.encoding().name(),
            fingerprint::of_secret(secret.text().as_bytes())
        ),
        Some(secret) => format!("secret of {}", secret::describe(secret.text())),
        None => format!("{} public key", key.family().label()),
    };
    format!("{}  {}{kid}  {what}\n", key.fingerprint(), key.name())
}
