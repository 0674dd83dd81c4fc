//! The hub with sockets whose writes cost as much as real ones: loopback TCP, whose clients read
//! outside of the timed part.
#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

mod parts;

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use parts::push;
use tokio::runtime::{Builder, Runtime};
use tollgate::hub::{Activation, Connection, Hub, QueueBounds};
use tollgate::protocol::Wire;

fn hub() -> Arc<Hub> {
    tollgate::metrics::install();
    let bounds = QueueBounds {
        queue_messages: AtomicUsize::new(4096),
        queue_bytes: AtomicUsize::new(1 << 20),
        queue_bytes_total: AtomicUsize::new(1 << 28),
        queued: AtomicUsize::new(0),
        channels_per_connection: AtomicUsize::new(128),
    };

    let hub = Hub::new(1, bounds);
    hub.start_fanout();
    hub
}

fn subscribe(hub: &Hub, stream: Option<tokio::net::TcpStream>, wire: Wire) -> Arc<Connection> {
    let connection = hub.register(stream, wire);
    let channel = push().channel().clone();
    hub.subscribe(&connection, &channel).unwrap();
    hub.activate(&connection, &channel, &[], &Activation::default());
    connection
}

/// Creates `count` subscribers of one channel, each with the client's end of its socket.
async fn sockets(hub: &Hub, count: usize) -> Vec<(TcpStream, Arc<Connection>)> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut sockets = Vec::new();

    for _ in 0..count {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        let server = tokio::net::TcpStream::from_std(server).unwrap();
        server.set_nodelay(true).unwrap();
        server.writable().await.unwrap();
        sockets.push((client, subscribe(hub, Some(server), Wire::Plain)));
    }

    sockets
}

/// Publishes `burst` events and waits until they have left. The clients read after that, which is
/// not timed.
async fn round(hub: &Hub, sockets: &mut [(TcpStream, Arc<Connection>)], burst: usize) -> Duration {
    let mut frame = BytesMut::new();
    push().encode(Wire::Plain, &mut frame);
    let mut read = vec![0; frame.len() * burst];

    let began = Instant::now();
    for _ in 0..burst {
        hub.dispatch(push()).await;
    }
    hub.flush_barrier(&sockets[0].1).await;
    let took = began.elapsed();

    for (client, _) in sockets {
        client.read_exact(&mut read).unwrap();
    }
    took
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn fanout(c: &mut Criterion) {
    let mut group = c.benchmark_group("fan-out");

    for (subscribers, burst) in [(1, 1), (100, 1), (1000, 1), (100, 32), (1000, 32)] {
        let (runtime, deliveries) = (runtime(), (subscribers * burst) as u64);
        let (hub, mut sockets) = runtime.block_on(async {
            let hub = hub();
            let sockets = sockets(&hub, subscribers).await;
            (hub, sockets)
        });

        group.throughput(Throughput::Elements(deliveries));
        let id = BenchmarkId::new(format!("{burst} events"), subscribers);
        group.bench_function(id, |b| {
            b.iter_custom(|rounds| {
                runtime.block_on(async {
                    let mut took = Duration::ZERO;
                    for _ in 0..rounds {
                        took += round(&hub, &mut sockets, burst).await;
                    }
                    took
                })
            });
        });
    }
}

/// Measures the queue alone: a connection without a socket of the hub's, such as a stream, has its
/// events queued and takes them from there.
fn queue(c: &mut Criterion) {
    let runtime = runtime();
    let (hub, connection) = runtime.block_on(async {
        let hub = hub();
        let connection = subscribe(&hub, None, Wire::Sse);
        (hub, connection)
    });

    let mut group = c.benchmark_group("queue");
    group.throughput(Throughput::Elements(32));
    group.bench_function("32 events queued and taken", |b| {
        b.iter(|| {
            runtime.block_on(async {
                for _ in 0..32 {
                    hub.dispatch(push()).await;
                }
                hub.flush_barrier(&connection).await;
                while connection.take_queued().is_some() {}
            });
        });
    });
}

criterion_group!(benches, fanout, queue);
criterion_main!(benches);
