//! Publishes a few events to NATS JetStream, as a shop's own service would: `cargo run --example publish_nats [URL]`.
//!
//! What is published below `thalweg.events` is an event once the broker has acknowledged it. An event is named by its
//! `messageId`, so it may be published again whenever an acknowledgement does not come; `Nats-Msg-Id` lets the broker
//! drop the second one before anybody reads it.

use std::time::{SystemTime, UNIX_EPOCH};

use nats::jetstream::{self, context::Context, message::PublishMessage};
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> Result<(), nats::Error> {
    let url = std::env::args().nth(1).unwrap_or("nats://127.0.0.1:4222".into());
    let stream = jetstream::new(nats::connect(url).await?);
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
    let visit = format!("visit-{now}");

    // One call, in the form of the Segment tracking API; its type says what it is.
    let page = json!({"type": "page", "messageId": format!("{visit}-1"), "anonymousId": visit,
        "timestamp": now - 60_000, "properties": {"path": "/boots"}});
    publish(&stream, "page", &format!("{visit}-1"), &page.to_string()).await?;

    // Many in one message cost the broker one acknowledgement: a batch, or one call a line.
    let batch = json!({"batch": [call(&visit, 2, now, "product_view"), call(&visit, 3, now, "add_to_cart")]});
    publish(&stream, "cart", &format!("{visit}-2-3"), &batch.to_string()).await?;
    let lines = format!("{}\n{}\n", call(&visit, 4, now, "checkout_started"), call(&visit, 5, now, "purchase"));
    publish(&stream, "checkout", &format!("{visit}-4-5"), &lines).await?;
    Ok(())
}

fn call(visit: &str, number: u64, now: u64, event: &str) -> Value {
    json!({"type": "track", "messageId": format!("{visit}-{number}"), "anonymousId": visit, "event": event,
        "timestamp": now - 60_000 + number * 1_000, "properties": {"items": 1}})
}

/// The first wait is for the message to be sent, the second for the stream to have it.
async fn publish(stream: &Context, about: &str, id: &str, body: &str) -> Result<(), nats::Error> {
    let message = PublishMessage::build().message_id(id).payload(body.to_owned().into());
    let kept = stream.send_publish(format!("thalweg.events.shop.{about}"), message).await?.await?;
    println!("{id} is kept at position {}", kept.sequence);
    Ok(())
}
