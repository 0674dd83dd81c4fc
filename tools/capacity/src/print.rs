//! Tables for people and JSON for machines. Nothing is computed here.

use serde_json::{Map, Value, json};

use crate::Answer;
use crate::load::Load;
use crate::model::Model;
use crate::number::number;
use crate::plan::{Need, Use};
use crate::simulate::{Compared, Simulated};

/// Beyond this share the output says that formula and simulation differ.
const DIFFERS: f64 = 0.1;

pub fn answer(model: &Model, load: &Load, answer: &Answer) {
    let plan = answer.plan;
    println!(
        "{} sockets, {} publications a second: {} replicas, {} Redis",
        number(load.sockets),
        number(load.events()),
        number(plan.replicas),
        number(plan.shards),
    );

    println!("\n  {:20} {:>8} {:>10} {:>10} {:>10}", "resource", "needs", "used", "may", "has");
    rows(&answer.replicas, &model.replica_uses(load, plan.replicas));
    rows(&answer.shards, &model.shard_uses(load, plan));

    let replica = model.replica(load, plan.replicas, 1.0);
    let shard = model.shard(load, plan.replicas, plan.shards);
    println!(
        "\n  each replica at ordinary times: {} sockets, {} cores, {} deliveries/s, {} publications/s",
        number(replica.sockets.round()),
        number(replica.cpu),
        number(replica.deliveries.round()),
        number(replica.publications.round()),
    );
    println!("  a publication goes to {} of the replicas", number(shard.interested));

    let moves = model.moves(load, plan);
    println!(
        "  rollout: {} s; {} reconnects/s; each socket moves {} times; one replica has up to {} shares",
        number(moves.rollout_s),
        number(moves.connects.round()),
        number(moves.moves),
        number(moves.peak),
    );
    println!(
        "  back after the loss of a replica: {} s; after all were cut off: {} s, Redis {} s",
        number(moves.loss_s),
        number(moves.storm_s),
        number(moves.storm_redis_s),
    );

    if model.price(plan) > 0.0 {
        println!("  a month: {}", number(model.price(plan).round()));
    }

    for (place, (name, times)) in model.breaks(load, plan).iter().take(3).enumerate() {
        let place = ["breaks first", "then", "then"][place];
        println!("  {place}: {name}, at {} times this load", number(*times));
    }

    for problem in &answer.problems {
        println!("  WRONG: {problem}");
    }
}

fn rows(needs: &[Need], uses: &[Use]) {
    for (need, used) in needs.iter().zip(uses) {
        let count = need.count.map_or_else(|| "never".to_owned(), number);
        println!(
            "  {:20} {count:>8} {:>10} {:>10} {:>10} {}",
            need.name,
            number(used.used),
            number(used.allowed),
            number(used.limit),
            used.unit,
        );
    }
}

pub fn json(model: &Model, load: &Load, answer: &Answer) -> Value {
    let plan = answer.plan;
    let resources = |needs: &[Need], uses: &[Use]| -> Value {
        let row = |(need, used): (&Need, &Use)| {
            let value = json!({
                "needs": need.count, "used": used.used, "may": used.allowed, "has": used.limit,
                "unit": used.unit,
            });
            (need.name.to_owned(), value)
        };
        needs.iter().zip(uses).map(row).collect::<Map<_, _>>().into()
    };

    let moves = model.moves(load, plan);
    let breaks = model.breaks(load, plan);

    json!({
        "sockets": load.sockets,
        "publications_per_s": load.events(),
        "replicas": plan.replicas,
        "redis": plan.shards,
        "by_replica": resources(&answer.replicas, &model.replica_uses(load, plan.replicas)),
        "by_redis": resources(&answer.shards, &model.shard_uses(load, plan)),
        "interested": model.shard(load, plan.replicas, plan.shards).interested,
        "rollout_s": moves.rollout_s,
        "rollout_connects_per_s": moves.connects,
        "rollout_moves": moves.moves,
        "rollout_peak_shares": moves.peak,
        "loss_s": moves.loss_s,
        "storm_s": moves.storm_s,
        "storm_redis_s": moves.storm_redis_s,
        "price": model.price(plan),
        "breaks": breaks.iter().map(|(name, at)| json!({"what": name, "times": at})).collect::<Vec<_>>(),
        "problems": answer.problems,
    })
}

pub fn simulated(found: &Simulated) {
    println!("\n  simulated{:24} {:>12} {:>12} {:>12}", "", "formula", "mean", "peak");
    for row in &found.rows {
        let marks = if differs(row) { "differs" } else { "" };
        println!(
            "  {:33} {:>12} {:>12} {:>12} {:>7} % {marks}",
            row.name,
            number(row.formula),
            number(row.mean),
            number(row.peak),
            number((difference(row) * 100.0).round()),
        );
    }

    println!("  took {} s", number(found.took));
}

fn difference(row: &Compared) -> f64 {
    if row.formula == 0.0 { 0.0 } else { row.peak / row.formula - 1.0 }
}

fn differs(row: &Compared) -> bool {
    difference(row).abs() > DIFFERS
}

pub fn simulated_json(found: &Simulated) -> Value {
    let row = |row: &Compared| {
        let value = json!({
            "formula": row.formula, "mean": row.mean, "peak": row.peak, "differs": differs(row),
        });
        (row.name.to_owned(), value)
    };
    found.rows.iter().map(row).collect::<Map<_, _>>().into()
}
