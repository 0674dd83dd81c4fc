//! Helpers that the benchmarks share.

use bytes::Bytes;
use serde_json::json;
use tollgate::channel::Publication;
use tollgate::protocol::Push;

/// A plain publication of some 200 bytes.
pub fn push() -> Push {
    let payload = json!({"type": "post_purchased", "postId": "p1", "pad": "x".repeat(150)});
    Push::Publication(Publication {
        channel: "post:42".parse().expect("a channel"),
        payload: Bytes::from(payload.to_string()),
        position: None,
        cut: None,
        published: None,
    })
}
