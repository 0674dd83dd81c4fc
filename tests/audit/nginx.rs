//! nginx with the configuration of `docs/ingress.md`, before gateways that come and go.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::servers::free_port;

const PAGE: &str = include_str!("../../docs/ingress.md");
const START: Duration = Duration::from_secs(20);

pub struct Nginx {
    child: Child,
    folder: TempDir,
    pub address: String,
}

impl Nginx {
    pub async fn start(gateways: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        std::fs::write(folder.path().join("nginx.conf"), whole(&folder, &address, gateways))
            .unwrap();
        let log = File::create(folder.path().join("error.log")).unwrap();
        let child = Command::new("nginx")
            .args(["-e", "stderr", "-p"])
            .arg(folder.path())
            .arg("-c")
            .arg(folder.path().join("nginx.conf"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("nginx is needed: `make deps` installs it");
        let mut nginx = Self { child, folder, address };
        let began = Instant::now();
        while TcpStream::connect(&nginx.address).await.is_err() {
            let ended = nginx.child.try_wait().unwrap();
            let fine = ended.is_none() && began.elapsed() < START;
            assert!(fine, "nginx does not start:\n{}", nginx.log());
            sleep(Duration::from_millis(20)).await;
        }
        nginx
    }

    /// Other gateways from now on. The old workers keep their sockets.
    pub fn reload(&self, gateways: &[String]) {
        let text = whole(&self.folder, &self.address, gateways);
        std::fs::write(self.folder.path().join("nginx.conf"), text).unwrap();
        self.signal("-HUP");
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("error.log")).unwrap_or_default()
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Killed, it would leave its workers behind.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.signal("-TERM");
        }
        let _ = self.child.wait();
    }
}

fn whole(folder: &TempDir, address: &str, gateways: &[String]) -> String {
    let folder = folder.path().display();
    let names = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary: String =
        names.map(|name| format!("{name}_temp_path {folder}/{name};\n")).concat();
    format!(
        "daemon off; worker_processes 2; worker_rlimit_nofile 16384; pid {folder}/nginx.pid;\n\
         error_log stderr;\nevents {{ worker_connections 8192; }}\nhttp {{\n{temporary}{}}}\n",
        documented(&folder.to_string(), address, gateways)
    )
}

/// The page's configuration, without TLS: `make ingress` tries that, and here it would be most of the
/// work.
fn documented(folder: &str, address: &str, gateways: &[String]) -> String {
    let block = PAGE.split("<!-- test: nginx -->\n```nginx\n").nth(1).unwrap();
    let block = block.split("```").next().unwrap();
    let example = block.lines().find(|line| line.contains("server 10.0.1.11:8000")).unwrap();
    let lines = block.lines().filter(|line| {
        let line = line.trim_start();
        !line.starts_with("ssl_") && !line.starts_with("server 10.0.1.12:8000")
    });
    let text = lines.collect::<Vec<_>>().join("\n") + "\n";
    // Each has a weight of its own, as on the page.
    let weight = "weight=1001";
    assert!(example.contains(weight), "{example}");
    let server = |(number, gateway): (usize, &String)| {
        let weighted = example.replace(weight, &format!("weight={}", 1001 + number));
        weighted.replace("10.0.1.11:8000", gateway)
    };
    let servers = gateways.iter().enumerate().map(server).collect::<Vec<_>>().join("\n");
    let listen = format!("listen {address};");
    let changes = [
        (example, servers.as_str()),
        ("listen 443 ssl http2;", &listen),
        ("/var/log/nginx", folder),
    ];
    changes.into_iter().fold(text, |text, (old, new)| {
        assert_eq!(text.matches(old).count(), 1, "{old:?} in docs/ingress.md");
        text.replace(old, new)
    })
}
