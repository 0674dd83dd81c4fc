"""The row of the relay. Only the leader knows how many rows wait; the others say 0."""

from panel import RATE, Panel


def each_second(metric: str, by: str = "") -> str:
    by = f" by ({by})" if by else ""
    return f"sum{by} (rate({metric}{{relay}}[{RATE}]))"


def late(q: float) -> str:
    return f"histogram_quantile({q}, sum by (le) (rate(tollgate_relay_publish_seconds_bucket{{relay}}[{RATE}])))"


RELAY_PANELS = [
    Panel(
        "Who leads",
        [("max by (pod) (tollgate_relay_leader{relay})", "{{pod}}")],
        kind="stacked",
        width=6,
        says="One relay leads, the others stand by.",
        runbooks=[
            "TollgateRelayDown",
            "TollgateRelayReplicaDown",
            "TollgateRelayNoLeader",
            "TollgateRelayFlapping",
        ],
    ),
    Panel(
        "Postgres and Redis connected?",
        [
            ("min by (pod) (tollgate_relay_postgres_connected{relay})", "{{pod}} Postgres"),
            ('min by (pod) (tollgate_redis_connected{relay,role=~"publisher|writer"})', "{{pod}} Redis"),
        ],
        kind="states",
        width=6,
        runbooks=["TollgateRelayPostgresDown"],
    ),
    Panel(
        "Rows that wait",
        [("sum(tollgate_relay_pending{relay})", "rows")],
        width=6,
        runbooks=["TollgateRelayBehind"],
    ),
    Panel(
        "Since when the oldest waits",
        [("max(tollgate_relay_oldest_pending_seconds{relay})", "oldest")],
        unit="s",
        width=6,
        limits=(10, 60),
        runbooks=["TollgateRelayBehind"],
    ),
    Panel(
        "Published by the relay",
        [
            (each_second("tollgate_relay_published_total"), "published"),
            (each_second("tollgate_relay_repeated_total"), "Redis had them already"),
            (each_second("tollgate_relay_unheard_total"), "nobody was subscribed"),
        ],
        unit="cps",
        width=6,
        says="Nobody is subscribed to the channel of a user who is away: that is usual.",
    ),
    Panel(
        "From insertion to publication",
        [(late(q), f"{q:.0%}") for q in (0.5, 0.9, 0.99)],
        unit="s",
        width=6,
        says="By Postgres' clock. It begins with the insertion, and so has the rest of the transaction in it.",
        runbooks=["TollgateRelaySlow"],
    ),
    Panel(
        "Dead rows",
        [
            ("max(tollgate_relay_dead{relay})", "in tollgate_outbox_dead"),
            ("sum by (reason) (increase(tollgate_relay_dead_total{relay}[5m])) > 0", "{{reason}}, in 5 minutes"),
        ],
        width=6,
        says="Rows that can never be published as they are.",
        runbooks=["TollgateRelayDeadRows"],
    ),
    Panel(
        "Errors of the relay",
        [(each_second("tollgate_relay_errors_total", "side"), "{{side}}")],
        kind="stacked",
        unit="cps",
        width=6,
        runbooks=["TollgateRelayPostgresDown", "TollgateRelayBehind"],
    ),
]
