// PM2: `pm2 start packaging/ecosystem.config.js && pm2 save`.
//
// PM2 gives a process the environment of the shell that started it, keeps that in its memory and its dump, and goes on with
// it after restarts whatever the files say by then. So here the environment is emptied and read from tollgate.env at every
// start: it is the same after a crash, `pm2 restart`, `pm2 resurrect` and a reboot, and no secret is in PM2's dump.
const bin = "/usr/local/bin/tollgate";
const etc = "/etc/tollgate";

module.exports = {
  apps: [
    {
      name: "tollgate",
      script: "/usr/bin/env",
      interpreter: "none",
      exec_mode: "fork",
      args: ["-i", "/bin/sh", "-c", `set -a; . ${etc}/tollgate.env; exec ${bin} serve --config ${etc}/tollgate.toml`],
      autorestart: true,
      exp_backoff_restart_delay: 100,
      // A configuration that cannot be used does not get better by itself.
      stop_exit_codes: [78],
      // SIGINT drains, as SIGTERM does. Above drain.settle (5 s), drain.window (20 s) and 3 s; raise it with them.
      kill_timeout: 40_000,
      // One drains while no other takes its sockets over: run a second app on other ports, behind a proxy.
      instances: 1,
      merge_logs: true,
    },
  ],
};
