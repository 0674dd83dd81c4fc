"""What the dashboard shows: rows of panels, as data. dashboard.py makes Grafana's JSON of it."""

from panel import RATE, Panel, quantile, quantiles, query, rate, stat
from relay_panels import RELAY_PANELS

CONNECTIONS = "sum by (pod) (tollgate_connections{~})"

ROWS: dict[str, list[Panel]] = {
    "Now": [
        stat(
            "Replicas up",
            "sum(up{~})",
            limits=(1, 2),
            low_is_bad=True,
            runbooks=["TollgateDown", "TollgateReplicaDown"],
        ),
        stat("Clients", "sum(tollgate_connections{~})"),
        stat("Publications", rate("tollgate_publications_received_total"), unit="cps"),
        stat("Deliveries", rate("tollgate_deliveries_total"), unit="cps"),
        stat(
            "Delivery, 99 %",
            quantile(0.99, "tollgate_delivery_seconds"),
            unit="s",
            limits=(0.25, 1),
            runbooks=["TollgateDeliverySlow"],
        ),
        stat(
            "Redis connected",
            "min(tollgate_redis_connected{~})",
            limits=(0.5, 1),
            low_is_bad=True,
            runbooks=["TollgateRedisLost"],
        ),
        stat(
            "Keys as the issuers'",
            "min(tollgate_issuer_key_match{~})",
            limits=(0.5, 1),
            low_is_bad=True,
            runbooks=["TollgateKeyDrift"],
        ),
        stat(
            "Alerts firing",
            'count(ALERTS{alertname=~"Tollgate.+",alertstate="firing",namespace=~"$namespace"}) or vector(0)',
            limits=(1, 1),
        ),
    ],
    "Clients": [
        Panel(
            "Connections",
            [(CONNECTIONS, "{{pod}}")],
            kind="stacked",
            width=12,
            says="By replica. A drain is a ramp here; a cliff is a replica that was killed.",
            runbooks=["TollgateConnectionsCollapsed", "TollgateNearCapacity"],
        ),
        Panel(
            "Connections by transport",
            [("sum by (transport, wire) (tollgate_connections{~})", "{{transport}} {{wire}}")],
            kind="stacked",
            width=6,
        ),
        Panel(
            "Handshake",
            quantiles("tollgate_handshake_seconds"),
            unit="s",
            width=6,
            says="From the request to the first message.",
        ),
        Panel(
            "Opened",
            [(rate("tollgate_connections_opened_total", "pod"), "{{pod}}")],
            kind="stacked",
            unit="cps",
            runbooks=["TollgateReconnectStorm"],
        ),
        Panel(
            "Closed, by reason",
            [(rate("tollgate_connections_closed_total", "reason") + " > 0", "{{reason}}")],
            kind="stacked",
            unit="cps",
            says="docs/protocol.md has the reasons.",
            runbooks=["TollgateReconnectStorm"],
        ),
        Panel(
            "Turned away, by limit or check",
            [(rate("tollgate_rejected_total", "reason") + " > 0", "{{reason}}")],
            kind="stacked",
            unit="cps",
            runbooks=["TollgateLimitReached"],
        ),
    ],
    "Tokens and keys": [
        Panel(
            "Refused tokens, by reason",
            [(rate("tollgate_auth_failures_total", "reason") + " > 0", "{{reason}}")],
            kind="stacked",
            unit="cps",
            runbooks=["TollgateBadSignatures", "TollgateTokensRefused"],
        ),
        Panel(
            "What the doctor found",
            [("sum by (cause) (increase(tollgate_auth_diagnoses_total{~}[5m])) > 0", "{{cause}}")],
            kind="stacked",
            says="In 5 minutes; at most doctor.per_second of the refused tokens are looked into.",
            runbooks=["TollgateBadSignatures"],
        ),
        Panel(
            "Bad signatures of all attempts",
            [
                (
                    rate("tollgate_auth_failures_total", "", ',reason="bad_signature"')
                    + " / ("
                    + rate("tollgate_connections_opened_total")
                    + " + "
                    + rate("tollgate_auth_failures_total")
                    + ")",
                    "share",
                )
            ],
            unit="percentunit",
            limits=(0.05, 0.2),
            top=1,
            runbooks=["TollgateBadSignatures"],
        ),
        Panel(
            "Do the issuers sign with our keys?",
            [("min by (issuer) (tollgate_issuer_key_match{~})", "{{issuer}}")],
            kind="states",
            height=6,
            runbooks=["TollgateKeyDrift"],
        ),
        Panel(
            "Keys that count now",
            [("count by (fingerprint, alg, kid) (tollgate_key_info{~} == 1)", "")],
            kind="table",
            height=6,
            says="And how many replicas have each.",
        ),
        Panel(
            "Revocations",
            [
                ("max(tollgate_revocations{~})", "revoked"),
                ("count(tollgate_revocations_readable{~} == 0)", "replicas that cannot read them"),
                ("max(tollgate_revocations_unusable{~})", "entries that cannot be used"),
            ],
            height=6,
            runbooks=["TollgateRevocationsUnreadable"],
        ),
        Panel(
            "Key sets and callbacks",
            [
                (rate("tollgate_jwks_fetches_total", "result"), "key set {{result}}"),
                (rate("tollgate_callbacks_total", "result"), "callback {{result}}"),
            ],
            unit="cps",
            height=6,
            runbooks=["TollgateKeysUnavailable", "TollgateKeySetFetchFailing", "TollgateCallbacksFailing"],
        ),
    ],
    "Events": [
        Panel(
            "Published",
            [(rate("tollgate_publications_received_total", "kind"), "{{kind}}")],
            kind="stacked",
            unit="cps",
            says="What replicas received from the broker: an event that two replicas want counts twice.",
        ),
        Panel("Delivered", [(rate("tollgate_deliveries_total", "pod"), "{{pod}}")], kind="stacked", unit="cps"),
        Panel(
            "Fan-out",
            [
                (
                    rate("tollgate_deliveries_total") + " / (" + rate("tollgate_publications_received_total") + " > 0)",
                    "clients for each publication",
                )
            ],
        ),
        Panel(
            "From publication to socket",
            [(f"sum by (le) (increase(tollgate_delivery_seconds_bucket{{~}}[{RATE}]))", "{{le}}")],
            kind="heatmap",
            unit="s",
            width=12,
            says="To the last of its sockets on each replica, of events that bring a time: "
            "durable ones by Redis' clock.",
            runbooks=["TollgateDeliverySlow"],
        ),
        Panel(
            "The same, quantiles",
            quantiles("tollgate_delivery_seconds"),
            unit="s",
            width=6,
            runbooks=["TollgateDeliverySlow"],
        ),
        Panel("Writing a batch to all its sockets", quantiles("tollgate_fanout_seconds"), unit="s", width=6),
        Panel(
            "Gaps declared",
            [(rate("tollgate_gaps_declared_total", "reason"), "{{reason}}")],
            kind="stacked",
            unit="cps",
            says="Clients were told that events may be missing.",
            runbooks=["TollgateGaps"],
        ),
        Panel(
            "Holes looked into, and duplicates",
            [
                (rate("tollgate_recoveries_total", "result"), "hole {{result}}"),
                (rate("tollgate_duplicates_dropped_total"), "duplicates dropped"),
            ],
            unit="cps",
            runbooks=["TollgateGaps"],
        ),
        Panel(
            "Clients that resume",
            [(rate("tollgate_resumes_total", "result"), "{{result}}")],
            kind="stacked",
            unit="cps",
            says="lost: they came back later than the history reaches.",
        ),
    ],
    "Redis": [
        Panel(
            "Connected?",
            [("min by (pod, role) (tollgate_redis_connected{~})", "{{pod}} {{role}}")],
            kind="states",
            runbooks=["TollgateRedisLost"],
        ),
        Panel(
            "Canary through Redis",
            [
                (quantile(0.99, "tollgate_canary_seconds", "pod"), "{{pod}} 99%"),
                (quantile(0.5, "tollgate_canary_seconds"), "all 50%"),
            ],
            unit="s",
            runbooks=["TollgateRedisSlow"],
        ),
        Panel(
            "Canaries missed, connections made again",
            [
                ("sum by (pod) (increase(tollgate_canary_missed_total{~}[1m]))", "{{pod}} missed"),
                ("sum by (pod) (increase(tollgate_redis_reconnects_total{~}[1m]))", "{{pod}} reconnects"),
            ],
            says="In a minute.",
            runbooks=["TollgateCanaryMissed", "TollgateRedisFlapping"],
        ),
        Panel(
            "Channels and subscriptions",
            [
                ("sum by (pod) (tollgate_channels{~})", "{{pod}} channels"),
                ("sum by (pod) (tollgate_subscriptions{~})", "{{pod}} subscriptions"),
            ],
        ),
        Panel(
            "Sentinels that answer",
            [("min by (pod) (tollgate_redis_sentinels_reached{~})", "{{pod}}")],
            says="Only with Sentinel.",
            runbooks=["TollgateSentinelsUnreachable"],
        ),
        Panel("Revoked tokens and users", [("max(tollgate_revocations{~})", "revocations")]),
    ],
    "Relay": RELAY_PANELS,
    "Slow clients": [
        Panel(
            "Closed because they read too slowly",
            [("sum by (pod) (increase(tollgate_slow_consumers_total{~}[1m]))", "{{pod}}")],
            kind="stacked",
            width=12,
            says="In a minute.",
            runbooks=["TollgateSlowConsumers"],
        ),
        Panel(
            "Bytes that wait in queues",
            [("sum by (pod) (tollgate_outbound_queue_bytes{~})", "{{pod}}")],
            kind="stacked",
            unit="bytes",
            width=12,
            runbooks=["TollgateSlowConsumers"],
        ),
    ],
    "Rollouts": [
        Panel("Draining", [("max by (pod) (tollgate_draining{~})", "{{pod}}")], top=1, runbooks=["TollgateDrainStuck"]),
        Panel(
            "Versions and configurations",
            [
                ("count by (version) (tollgate_build_info{~})", "{{version}}"),
                ("count by (sha) (tollgate_config_info{~} == 1)", "configuration {{sha}}"),
            ],
            says="Replicas of each.",
        ),
        Panel(
            "Configuration reloads, starts",
            [
                ("sum by (result) (increase(tollgate_config_reloads_total{~}[1m]))", "reload {{result}}"),
                ("count(time() - process_start_time_seconds{~} < 60) or vector(0)", "started within a minute"),
            ],
            runbooks=["TollgateConfigReloadFailed", "TollgateRestarting"],
        ),
    ],
    "Resources and headroom": [
        Panel("CPU", [(rate("process_cpu_seconds_total", "pod"), "{{pod}}")], says="Cores."),
        Panel(
            "Resident memory",
            [("sum by (pod) (process_resident_memory_bytes{~})", "{{pod}}")],
            unit="bytes",
            runbooks=["TollgateMemory"],
        ),
        Panel(
            "Memory for each connection",
            [(f"sum by (pod) (process_resident_memory_bytes{{~}}) / ({CONNECTIONS} > 0)", "{{pod}}")],
            unit="bytes",
            says="What a process takes once is spread over its connections, so few look dear.",
        ),
        Panel(
            "Connections of limits.connections",
            [(f"{CONNECTIONS} / max by (pod) (tollgate_connections_limit{{~}} > 0)", "{{pod}}")],
            unit="percentunit",
            width=6,
            top=1,
            limits=(0.7, 0.85),
            runbooks=["TollgateNearCapacity"],
        ),
        Panel(
            "File descriptors of the limit",
            [("max by (pod) (process_open_fds{~}) / max by (pod) (process_max_fds{~} > 0)", "{{pod}}")],
            unit="percentunit",
            width=6,
            top=1,
            limits=(0.7, 0.85),
            runbooks=["TollgateFileDescriptors"],
        ),
        Panel(
            "Container memory of its limit",
            [
                (
                    "max by (pod) (container_memory_working_set_bytes{k}) / "
                    'max by (pod) (kube_pod_container_resource_limits{k,resource="memory"} > 0)',
                    "{{pod}}",
                )
            ],
            unit="percentunit",
            width=6,
            top=1,
            limits=(0.8, 0.9),
            says="Only in Kubernetes.",
            runbooks=["TollgateMemory"],
        ),
        Panel("Threads", [("sum by (pod) (process_threads{~})", "{{pod}}")], width=6),
        Panel(
            "Log lines dropped",
            [(rate("tollgate_log_lines_dropped_total", "pod"), "{{pod}}")],
            width=6,
            says="Nothing but the log suffers.",
            runbooks=["TollgateLogLinesDropped"],
        ),
    ],
}

# Name, colour, and an expression: an event is where it has a value.
ANNOTATIONS = [
    ("Drains", "orange", query("max by (pod) (tollgate_draining{~}) == 1")),
    ("Redis reconnects", "red", query("sum by (pod) (increase(tollgate_redis_reconnects_total{~}[1m])) > 0")),
    ("Configuration", "blue", query("sum by (pod, result) (increase(tollgate_config_reloads_total{~}[1m])) > 0")),
    ("Starts", "green", query("time() - max by (pod) (process_start_time_seconds{~}) < 60")),
]
