// nginx and HAProxy with the configurations of docs/ingress.md.
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { block, here } from "./documents.mjs";
import { start } from "./processes.mjs";

/** A certificate of its own for 127.0.0.1: `tls.crt`, `tls.key`, and both in `tls.pem`. */
function certify(file) {
  const subject = ["-subj", "/CN=site", "-addext", "subjectAltName=IP:127.0.0.1"];
  const key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", file("tls.key")];
  execFileSync("openssl", ["req", "-x509", "-days", "2", ...key, "-out", file("tls.crt"), ...subject], { stdio: "ignore" });
  writeFileSync(file("tls.pem"), readFileSync(file("tls.crt"), "utf8") + readFileSync(file("tls.key"), "utf8"));
}

function startNginx({ folder, file, port, a, b }) {
  const main = `daemon off; worker_processes 2; pid ${file("pid")}; error_log stderr;\nevents { worker_connections 512; }\n`;
  const temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((t) => `${t}_temp_path ${file(t)};`).join("\n");
  const text = here(block("docs/ingress.md", "nginx"), {
    "10.0.1.11:8000": `127.0.0.1:${a.port}`,
    "10.0.1.12:8000": `127.0.0.1:${b.port}`,
    "/etc/nginx/tls/tls.crt": file("tls.crt"),
    "/etc/nginx/tls/tls.key": file("tls.key"),
    "listen 443": `listen 127.0.0.1:${port}`,
    "access_log /var/log/nginx/": `access_log ${folder}/`,
  });
  writeFileSync(file("conf"), `${main}http {\n${temp}\n${text}}\n`);
  return start("nginx", ["-p", folder, "-e", "stderr", "-c", file("conf")]);
}

function startHaproxy({ file, port, a, b, h2 }) {
  const text = here(block("docs/ingress.md", "haproxy"), {
    "10.0.1.11:8000 port 9000": `127.0.0.1:${a.port} port ${a.adminPort}`,
    "10.0.1.12:8000 port 9000": `127.0.0.1:${b.port} port ${b.adminPort}`,
    "/etc/haproxy/tls/tls.pem": file("tls.pem"),
    "bind :443": `bind 127.0.0.1:${port}`,
    ...(h2 ? {} : { "alpn h2,http/1.1": "alpn http/1.1" }),
  });
  writeFileSync(file("conf"), text);
  return start("haproxy", ["-db", "-f", file("conf")]);
}

/** A proxy on `port` before replicas; without `h2` HAProxy offers HTTP/1.1 alone. */
export function startProxy({ kind, h2 = true }, { folder, port, replicas }) {
  const file = (name) => path.join(folder, name);
  certify(file);
  // Both addresses are in the configuration: of one replica, the second is the same.
  const [a, b = a] = replicas;
  const begin = { nginx: startNginx, haproxy: startHaproxy }[kind];
  return begin({ folder, file, port, a, b, h2 });
}
