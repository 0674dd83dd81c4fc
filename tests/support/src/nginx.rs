//! nginx on a free port, before gateways.
//!
//! Not here: what nginx is configured to do, which its caller says.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::eventually;
use crate::process::{Process, free_port};

/// A running nginx; it ends when this is dropped.
pub struct Nginx {
    process: Process,
    folder: TempDir,
    /// Host and port where it listens.
    pub address: String,
}

impl Nginx {
    /// Starts one with these two parts of a configuration, and waits until it listens.
    ///
    /// `main` is the text before the block `http`. `http` gets the folder and the address, and
    /// returns the text of the block.
    pub async fn start(main: &str, http: impl Fn(&Path, &str) -> String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        write(folder.path(), main, &http(folder.path(), &address));

        let log = File::create(folder.path().join("error.log")).unwrap();
        let mut command = Command::new("nginx");
        command.args(["-e", "stderr", "-p"]).arg(folder.path());
        command.arg("-c").arg(folder.path().join("nginx.conf"));
        // Debian installs nginx there, which is not in every user's PATH.
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin"));
        let process = Process::spawn(command.stdin(Stdio::null()).stderr(log));

        let mut nginx = Self { process, folder, address };
        let address = nginx.address.clone();
        eventually("nginx", || {
            assert!(nginx.process.ended().is_none(), "nginx does not start:\n{}", nginx.log());
            let address = address.clone();
            async move { TcpStream::connect(address).await.ok() }
        })
        .await;
        nginx
    }

    /// Has nginx read another configuration. Its old workers keep their sockets.
    pub fn reload(&self, main: &str, http: impl Fn(&Path, &str) -> String) {
        write(self.folder.path(), main, &http(self.folder.path(), &self.address));
        self.process.signal("-HUP");
    }

    /// The error log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("error.log")).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // A killed nginx would leave its workers behind.
        if self.process.ended().is_none() {
            self.process.signal("-TERM");
        }
        self.process.wait();
    }
}

fn write(folder: &Path, main: &str, http: &str) {
    let folder_name = folder.display();
    let names = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary: String =
        names.map(|name| format!("{name}_temp_path {folder_name}/{name};\n")).concat();
    let text = format!(
        "daemon off; pid {folder_name}/nginx.pid; error_log stderr;\n{main}\nhttp {{\n{temporary}{http}}}\n"
    );
    std::fs::write(folder.join("nginx.conf"), text).unwrap();
}
