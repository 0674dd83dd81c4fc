//! nginx with the configuration of `docs/ingress.md`, before gateways that come and go.

use std::path::Path;

use tollgate_support::nginx::Nginx;

const PAGE: &str = include_str!("../../docs/ingress.md");

/// The configuration before the block `http`: room for the clients of a rollout.
const MAIN: &str =
    "worker_processes 2; worker_rlimit_nofile 16384; events { worker_connections 8192; }";

/// Starts one in front of these gateways.
pub async fn start(gateways: &[String]) -> Nginx {
    Nginx::start(MAIN, |folder, address| documented(folder, address, gateways)).await
}

/// Points nginx to other gateways from now on. Its old workers keep their sockets.
pub fn reload(nginx: &Nginx, gateways: &[String]) {
    nginx.reload(MAIN, |folder, address| documented(folder, address, gateways));
}

/// The page's configuration without TLS, which `make ingress` tests and which would be most of the
/// work here.
fn documented(folder: &Path, address: &str, gateways: &[String]) -> String {
    let block = PAGE.split("<!-- test: nginx -->\n```nginx\n").nth(1).unwrap();
    let block = block.split("```").next().unwrap();
    let example = block.lines().find(|line| line.contains("server 10.0.1.11:8000")).unwrap();

    let lines = block.lines().filter(|line| {
        let line = line.trim_start();
        !line.starts_with("ssl_") && !line.starts_with("server 10.0.1.12:8000")
    });
    let text = lines.collect::<Vec<_>>().join("\n") + "\n";

    // Each gateway has a weight of its own, as on the page.
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
        ("/var/log/nginx", &folder.display().to_string()),
    ];
    changes.into_iter().fold(text, |text, (old, new)| {
        assert_eq!(text.matches(old).count(), 1, "{old:?} in docs/ingress.md");
        text.replace(old, new)
    })
}
