//! The command line: `serve`, `config check` and `config print` are here, the others in modules of
//! their own.

mod file;
mod log;
mod publish;
mod relay;
mod token;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::app::Running;
use crate::config::{self, DEFAULT_TOML, Problem, Sources};
use crate::logging;
use crate::probe;
use crate::process_limits;
use crate::terminal::{complain, print};
use file::{File, problems, sources};
use log::init_log;

/// A real-time gateway: backends publish JSON, and every authorised client receives it.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway.
    Serve(Serve),
    /// Check or print the configuration without running the gateway.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Sign or check tokens, and compare keys.
    Token {
        #[command(subcommand)]
        command: token::Command,
    },
    /// Publish one event on a channel, and say who heard it.
    ///
    /// Exit status: 0 if it was published, 1 if it was refused or Redis cannot be reached, 78 if the configuration
    /// cannot be used.
    Publish(publish::Publish),
    /// Publish what applications write into an outbox in PostgreSQL, and look after it.
    ///
    /// Without a subcommand, this runs a relay: one of any number works, the others stand by.
    Relay(relay::Relay),
    /// Examine a deployment from outside, as a client sees it.
    ///
    /// Reports every problem on the way to the gateway, with its fix: DNS, TLS, proxies, token, events, time-outs.
    /// Exit status: 0 if no problem was found, 1 if one was, 2 if the examination could not start.
    Doctor(probe::Probe),
}

#[derive(Debug, Args)]
struct Serve {
    #[command(flatten)]
    file: File,
    /// Address for clients and the server API [default: server.listen]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Address for metrics and health [default: admin.listen]
    #[arg(long, value_name = "ADDR:PORT")]
    admin_listen: Option<SocketAddr>,
    /// Development mode: a demo page with a random secret, weak secrets allowed, loopback only
    #[arg(long)]
    dev: bool,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Report every problem in the configuration; exit with 78 if there is one.
    Check(File),
    /// Print the effective configuration with secrets redacted.
    Print {
        #[command(flatten)]
        file: File,
        /// Print the built-in defaults with their explanations instead
        #[arg(long)]
        defaults: bool,
    },
}

/// Runs the command line; the exit code is the process's.
#[must_use]
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => serve(&args),
        Command::Config { command: ConfigCommand::Check(file) } => check(&file),
        Command::Config { command: ConfigCommand::Print { defaults: true, .. } } => {
            print(DEFAULT_TOML)
        }
        Command::Config { command: ConfigCommand::Print { file, .. } } => print_config(&file),
        Command::Token { command } => token::run(&command),
        Command::Publish(args) => publish::run(&args),
        Command::Relay(args) => relay::run(&args),
        Command::Doctor(args) => probe::run(&args),
    };

    match result {
        Ok(code) => code,
        Err(e) => {
            complain(&format!("tollgate: {e:#}\n"));
            ExitCode::FAILURE
        }
    }
}

fn check(file: &File) -> anyhow::Result<ExitCode> {
    match config::load(&sources(file)) {
        Ok(loaded) => {
            for warning in &loaded.policy.warnings {
                complain(&format!("warning: {warning}\n"));
            }
            print("the configuration is valid\n")
        }
        Err(found) => Ok(problems(&found)),
    }
}

fn print_config(file: &File) -> anyhow::Result<ExitCode> {
    match config::load(&sources(file)) {
        Ok(loaded) => print(&loaded.printed),
        Err(found) => Ok(problems(&found)),
    }
}

impl Serve {
    fn sources(&self, dev_secret: &str) -> Sources<'static> {
        let mut sources = Sources { dev: self.dev, ..sources(&self.file) };
        if self.dev {
            sources.dev_secret = Some(dev_secret.to_owned());
            sources.presets = vec![("server.listen", "127.0.0.1:8000".into())];
        }

        let text = |a: SocketAddr| toml::Value::String(a.to_string());
        if let Some(address) = self.listen {
            sources.flags.push(("server.listen", text(address), "--listen"));
        }
        if let Some(address) = self.admin_listen {
            sources.flags.push(("admin.listen", text(address), "--admin-listen"));
        }
        sources
    }
}

fn random_secret() -> anyhow::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("cannot get random bytes: {e}"))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

fn serve(args: &Serve) -> anyhow::Result<ExitCode> {
    process_limits::leave_no_core();

    let sources = args.sources(&random_secret()?);
    let loaded = match config::load(&sources) {
        Ok(loaded) => loaded,
        Err(found) => return Ok(problems(&found)),
    };

    if args.dev && !loaded.config.server.listen.ip().is_loopback() {
        return Ok(problems(&[Problem {
            path: "server.listen".to_owned(),
            origin: None,
            message:
                "with --dev this must be a loopback address (127.0.0.1 or [::1]), because the \
                 demo page signs tokens for anyone"
                    .to_owned(),
        }]));
    }

    init_log(&loaded.config)?;

    let workers = loaded.config.server.workers;
    let runtime = runtime("tollgate", workers)?;
    let delivery = self::runtime("delivery", workers)?;
    let dev = args.dev;
    let handle = delivery.handle().clone();

    runtime.block_on(async move {
        let running = Running::start(loaded, dev, &handle)?;
        let addresses = running.addresses()?;
        tracing::info!(
            public = %addresses.public, admin = %addresses.admin,
            version = env!("CARGO_PKG_VERSION"), "tollgate runs"
        );

        if dev {
            let text = format!("\n  Demo: http://{}/\n\n", addresses.public);
            logging::write_within(std::io::stdout(), text);
        }

        running.run(Box::new(move || config::load(&sources))).await
    })?;

    logging::end();
    // Connections that did not close in time are not waited for.
    runtime.shutdown_background();
    delivery.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

/// A runtime whose threads have that name; 0 workers means one per CPU.
fn runtime(name: &str, workers: usize) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if workers > 0 {
        builder.worker_threads(workers);
    }
    builder.thread_name(name).enable_all().build()
}
