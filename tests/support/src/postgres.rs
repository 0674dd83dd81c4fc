//! PostgreSQL on a free port, with the outbox in it, and a standby that follows it.
//!
//! Not here: what a test writes. A server is killed with all of its processes when it is dropped, and
//! its data goes with it. A restarted one has the port and the data of the one before.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_postgres::{Client, NoTls};

use crate::eventually;
use crate::process::{Process, free_port};

/// The database, and the two users: the application's, and the relay's.
pub const DATABASE: &str = "shop";
/// Who may only call `tollgate_publish`.
pub const APPLICATION: &str = "web";
/// Who has the relay's role.
pub const RELAY: &str = "relay";

/// The user that servers run as where tests run as root, which PostgreSQL refuses.
const SYSTEM_USER: &str = "postgres";

/// One server.
pub struct Postgres {
    /// None while it is killed.
    process: Option<Process>,
    /// Where it listens.
    pub port: u16,
    folder: TempDir,
    lines: Vec<String>,
    /// Variables of its environment, for `faketime`.
    environment: Vec<(String, String)>,
}

impl Postgres {
    /// Starts a server with an empty database and the two users.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// Starts one with further lines of configuration.
    pub async fn with(lines: &[&str]) -> Self {
        let folder = folder();
        let data = folder.path().join("data");
        let arguments = ["-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-sync", "-D"];
        run(command("initdb").args(arguments).arg(&data));

        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        let mut server =
            Self { process: None, port: free_port(), folder, lines, environment: vec![] };
        server.restart().await;
        let owner = server.client_of("postgres", "postgres").await;
        for statement in [
            format!("CREATE ROLE {APPLICATION} LOGIN"),
            format!("CREATE ROLE {RELAY} LOGIN"),
            format!("CREATE DATABASE {DATABASE}"),
        ] {
            owner.execute(&statement, &[]).await.unwrap();
        }
        server
    }

    /// Starts a standby that follows this server. If `confirmed`, commits wait for it.
    pub async fn standby(&self, confirmed: bool) -> Self {
        let folder = folder();
        let data = folder.path().join("data");
        let port = self.port.to_string();
        // Without a fast checkpoint the copy waits for the next one, for minutes.
        let arguments =
            ["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-c", "fast", "-R", "-D"];
        run(command("pg_basebackup").args(arguments).arg(&data));

        let mut standby = Self {
            process: None,
            port: free_port(),
            folder,
            lines: self.lines.clone(),
            environment: vec![],
        };
        standby.restart().await;
        if confirmed {
            let owner = self.client_of("postgres", "postgres").await;
            owner.batch_execute("ALTER SYSTEM SET synchronous_standby_names = '*'").await.unwrap();
            owner.batch_execute("SELECT pg_reload_conf()").await.unwrap();
            eventually("the standby confirms commits", || async {
                let sync = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
                (owner.query_one(sync, &[]).await.unwrap().get::<_, i64>(0) == 1).then_some(())
            })
            .await;
        }
        standby
    }

    /// Has a standby follow through another address, as a proxy's.
    pub async fn follow(&self, port: u16) {
        let owner = self.client_of("postgres", "postgres").await;
        let from = format!("host=127.0.0.1 port={port} user=postgres");
        let sql = format!("ALTER SYSTEM SET primary_conninfo = '{from}'");
        owner.batch_execute(&sql).await.unwrap();
        owner.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        eventually("the standby follows through that address", || async {
            let sql = "SELECT count(*) FROM pg_stat_wal_receiver WHERE sender_port = $1 \
                       AND status = 'streaming'";
            let row = owner.query_one(sql, &[&i32::from(port)]).await.unwrap();
            (row.get::<_, i64>(0) == 1).then_some(())
        })
        .await;
    }

    /// Makes a standby the primary.
    pub async fn promote(&self) {
        let owner = self.client_of("postgres", "postgres").await;
        owner.batch_execute("ALTER SYSTEM RESET synchronous_standby_names").await.unwrap();
        owner.batch_execute("SELECT pg_reload_conf(), pg_promote()").await.unwrap();
    }

    /// Runs it with other variables from the next start on.
    pub fn environment(&mut self, variables: Vec<(String, String)>) {
        self.environment = variables;
    }

    /// Starts it again, with its data.
    pub async fn restart(&mut self) {
        self.kill();
        let began = Instant::now();
        loop {
            // Until the last of the killed processes has let go of the data, a new server ends at once.
            if self.process.as_mut().is_none_or(|process| process.ended().is_some()) {
                self.process = Some(self.spawn());
            }
            if connect(self.port, "postgres", "postgres").await.is_ok() {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "PostgreSQL answers");
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn spawn(&self) -> Process {
        let mut server = command("postgres");
        server.arg("-D").arg(self.folder.path().join("data"));
        server.args(["-p", &self.port.to_string(), "-k", "", "-h", "127.0.0.1"]);
        for line in ["max_connections=100", "wal_level=replica", "max_wal_senders=4"] {
            server.args(["-c", line]);
        }
        for line in &self.lines {
            server.args(["-c", line]);
        }
        server.envs(self.environment.iter().cloned());
        Process::spawn(server.stdout(Stdio::null()).stderr(Stdio::null()))
    }

    /// Kills it with all of its processes, as the loss of a machine does.
    pub fn kill(&mut self) {
        let Some(process) = self.process.take() else { return };
        process.signal("-STOP");
        let parent = process.id().to_string();
        let _ = Command::new("pkill").args(["-KILL", "-P", &parent]).status();
        drop(process);
    }

    /// Stops or continues all of its processes: `-STOP`, `-CONT`.
    pub fn signal_all(&self, signal: &str) {
        let process = self.process.as_ref().unwrap();
        process.signal(signal);
        let _ = Command::new("pkill").args([signal, "-P", &process.id().to_string()]).status();
    }

    /// Host and port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The address of the database for a user.
    pub fn url(&self, user: &str) -> String {
        format!("postgres://{user}@{}/{DATABASE}", self.address())
    }

    /// Installs the outbox as the documentation says, by a gateway's program.
    pub async fn install(&self, program: &str) {
        let sql = Command::new(program).args(["relay", "sql"]).output().unwrap();
        assert!(sql.status.success());
        let owner = self.owner().await;
        owner.batch_execute(std::str::from_utf8(&sql.stdout).unwrap()).await.unwrap();
        for (role, user) in [("tollgate_app", APPLICATION), ("tollgate_relay", RELAY)] {
            owner.batch_execute(&format!("GRANT {role} TO {user}")).await.unwrap();
        }
    }

    /// A connection of the database's owner.
    pub async fn owner(&self) -> Client {
        self.client_of("postgres", DATABASE).await
    }

    /// A connection of the application.
    pub async fn application(&self) -> Client {
        self.client_of(APPLICATION, DATABASE).await
    }

    async fn client_of(&self, user: &str, database: &str) -> Client {
        let port = self.port;
        let (client, _) = eventually("a connection to PostgreSQL", || async move {
            connect(port, user, database).await.ok()
        })
        .await;
        client
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Connects once.
pub async fn connect(
    port: u16,
    user: &str,
    database: &str,
) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(port).user(user).dbname(database);
    config.connect_timeout(Duration::from_secs(2));
    let (client, connection) = config.connect(NoTls).await?;
    let driver = tokio::spawn(async move { drop(connection.await) });
    Ok((client, driver))
}

/// A folder that the server may use.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    if is_root() {
        let id = |what: &str| {
            let out = Command::new("id").args([what, SYSTEM_USER]).output().unwrap();
            String::from_utf8(out.stdout).unwrap().trim().parse::<u32>().unwrap()
        };
        chown(folder.path(), Some(id("-u")), Some(id("-g"))).unwrap();
    }
    folder
}

fn is_root() -> bool {
    let out = Command::new("id").arg("-u").output().unwrap();
    out.stdout == b"0\n"
}

/// A program of PostgreSQL, as a user that it accepts.
fn command(program: &str) -> Command {
    let path = programs().join(program);
    if !is_root() {
        return Command::new(path);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", SYSTEM_USER, "--regid", SYSTEM_USER, "--clear-groups"]).arg(path);
    command
}

/// Where Debian puts the programs of the newest version, which are not in the path.
fn programs() -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let folders = installed.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    let newest = folders.filter(|folder| folder.join("initdb").exists()).max();
    newest.unwrap_or_else(|| Path::new("/usr/bin").to_owned())
}

fn run(command: &mut Command) {
    let out = command.stdin(Stdio::null()).output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}
