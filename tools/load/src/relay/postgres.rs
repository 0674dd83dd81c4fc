//! PostgreSQL with the outbox in it: a server of our own, with the settings that it comes with, or a
//! given one. What is committed there is the business of `committers`.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use postgres::{Client, Config, NoTls};
use rustix::process::Signal;
use tempfile::TempDir;

use super::options::Relay;
use crate::clock;
use crate::suite::processes::{Server, free_port, start};
use crate::tally::{histogram, record};

const DATABASE: &str = "shop";
/// The user that a server of our own runs as under root, which PostgreSQL refuses.
const SYSTEM_USER: &str = "postgres";

pub struct Postgres {
    config: Config,
    /// What the relay is told.
    pub relay_url: String,
    /// Our own server, and its data, which goes with it.
    own: Option<(Server, TempDir)>,
    /// Holds back vacuum.
    _old: Option<Client>,
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // At once, but with all of its processes.
        if let Some((server, _)) = self.own.take() {
            server.end(Signal::QUIT);
        }
    }
}

impl Postgres {
    /// Starts or finds a server, and installs the outbox as its documentation says.
    pub fn prepare(args: &Relay, program: &Path, logs: &Path) -> Result<Self> {
        let mut postgres = match &args.postgres {
            Some(url) => {
                let config = url.parse().context("--postgres: postgres://owner@host/database")?;
                Postgres { config, relay_url: url.clone(), own: None, _old: None }
            }
            None => Self::start(args, logs)?,
        };

        let sql = Command::new(program).args(["relay", "sql"]).output()?;
        let sql = String::from_utf8(sql.stdout)?;
        let mut owner = postgres.connect()?;
        owner.batch_execute(&sql).context("`tollgate relay sql`")?;
        if postgres.own.is_some() {
            owner.batch_execute("CREATE ROLE relay LOGIN; GRANT tollgate_relay TO relay")?;
        }
        if postgres.pending()? {
            bail!("--postgres: rows wait in the outbox; what is measured would not be ours");
        }

        if args.published > 0 {
            eprintln!("relay: {} published rows are put into the outbox", args.published);
            publish_before(&mut owner, args)?;
        }
        if args.old_transaction {
            let mut old = postgres.connect()?;
            old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM tollgate_relay")?;
            postgres._old = Some(old);
        }
        Ok(postgres)
    }

    fn start(args: &Relay, logs: &Path) -> Result<Self> {
        let folder = match &args.data {
            Some(folder) => tempfile::tempdir_in(folder)?,
            None => tempfile::tempdir()?,
        };
        if is_root() {
            chown(folder.path(), Some(id_of("-u")?), Some(id_of("-g")?))?;
        }
        let data = folder.path().join("data");
        let mut initdb = command("initdb");
        initdb.args(["-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-sync", "-D"]).arg(&data);
        let said =
            initdb.stdin(Stdio::null()).output().context("initdb: is PostgreSQL installed?")?;
        if !said.status.success() {
            bail!("initdb: {}", String::from_utf8_lossy(&said.stderr).trim());
        }

        let port = free_port()?;
        let mut server = command("postgres");
        server.arg("-D").arg(&data).args(["-p", &port.to_string(), "-h", "127.0.0.1", "-k", ""]);
        let server = start(server, port, &logs.join("postgres.log")).context("postgres")?;

        let mut config = Config::new();
        config.host("127.0.0.1").port(port).user("postgres").dbname("postgres");
        let relay_url = format!("postgres://relay@127.0.0.1:{port}/{DATABASE}");
        let mut postgres = Postgres { config, relay_url, own: Some((server, folder)), _old: None };
        postgres.connect()?.batch_execute(&format!("CREATE DATABASE {DATABASE}"))?;
        postgres.config.dbname(DATABASE);
        Ok(postgres)
    }

    /// A connection of the owner. A server that has just started may refuse it at first.
    pub fn connect(&self) -> Result<Client> {
        let mut config = self.config.clone();
        config.application_name("tollgate-load").connect_timeout(Duration::from_secs(5));
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            match config.connect(NoTls) {
                Ok(client) => return Ok(client),
                Err(error) if self.own.is_none() || Instant::now() > end => {
                    return Err(error).context("cannot connect to PostgreSQL");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    pub fn pending(&self) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT FROM tollgate_outbox WHERE published_at IS NULL)";
        Ok(self.connect()?.query_one(sql, &[])?.get(0))
    }

    /// The processes that work for connections of that name, if they are on this machine.
    pub fn backends(&self, name: &str) -> Result<Vec<u32>> {
        let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND pid <> pg_backend_pid()";
        let rows = self.connect()?.query(sql, &[&name])?;
        let pids = rows.iter().map(|row| row.get::<_, i32>(0).cast_unsigned());
        Ok(pids.filter(|_| self.own.is_some()).collect())
    }

    /// Its version and what decides on the cost of a commit.
    pub fn settings(&self) -> Result<String> {
        let sql = "SELECT format('PostgreSQL %s, synchronous_commit %s, fsync %s, %s', \
                   current_setting('server_version'), current_setting('synchronous_commit'), \
                   current_setting('fsync'), current_setting('wal_sync_method'))";
        Ok(self.connect()?.query_one(sql, &[])?.get(0))
    }

    /// What a commit costs that writes one small row into a table of its own: nothing is faster.
    pub fn floor(&self, commits: usize) -> Result<hdrhistogram::Histogram<u64>> {
        let mut client = self.connect()?;
        // A temporary table writes no log, and so waits for no disk.
        client.batch_execute(
            "DROP TABLE IF EXISTS tollgate_load_floor; CREATE TABLE tollgate_load_floor (n bigint)",
        )?;
        let insert = client.prepare("INSERT INTO tollgate_load_floor VALUES (1)")?;
        let mut took = histogram();
        for _ in 0..commits {
            let began = clock::now();
            client.execute(&insert, &[])?;
            record(&mut took, clock::now() - began);
        }
        client.batch_execute("DROP TABLE tollgate_load_floor")?;
        Ok(took)
    }
}

/// Rows as a relay leaves them.
fn publish_before(owner: &mut Client, args: &Relay) -> Result<()> {
    let (rows, pad) = (args.published as i64, "x".repeat(args.bytes.saturating_sub(20)));
    owner.execute(
        "INSERT INTO tollgate_outbox (channel, payload, published_at, \"offset\", epoch) \
         SELECT 'post:old' || n % 1000, json_build_object('n', n, 'pad', $2::text), \
           clock_timestamp() - (($1 - n) || ' milliseconds')::interval, n, '1790000000000000' \
         FROM generate_series(1, $1::bigint) AS n",
        &[&rows, &pad],
    )?;
    Ok(owner.batch_execute("VACUUM ANALYZE tollgate_outbox")?)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn id_of(what: &str) -> Result<u32> {
    let said = Command::new("id").args([what, SYSTEM_USER]).output()?;
    let text = String::from_utf8(said.stdout)?;
    text.trim().parse().with_context(|| format!("there is no user {SYSTEM_USER}"))
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
    newest.unwrap_or_else(|| PathBuf::from("/usr/bin"))
}
