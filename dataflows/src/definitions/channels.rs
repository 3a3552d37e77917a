//! Channels: the ways to reach people or systems, and how they are read.

use serde::{Deserialize, Serialize};

use super::reader::{At, Reader};
use crate::time::{Millis, SECOND};

/// A way to reach people or systems.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Channel {
    /// By what.
    pub deliver: Deliver,
    /// Whether messages are shown at once (pop-ups), and so soon stale.
    pub realtime: bool,
    /// Whether messages taken back are told.
    pub revocations: bool,
}

/// By what a channel delivers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Deliver {
    /// Server-sent events, to whoever subscribes.
    Sse,
    /// An HTTP call.
    Webhook {
        /// Where to, `http://` or `https://`.
        url: String,
        /// The environment variable that holds the signing secret.
        secret_env: Option<String>,
        /// How long an answer may take; more than 0.
        timeout: Millis,
    },
    /// A NATS subject per campaign.
    Nats,
}

/// How long a webhook may take to answer when the file does not say.
const WEBHOOK_TIMEOUT: Millis = 5 * SECOND;

/// Reads one channel.
pub(super) fn channel(reader: &mut Reader, at: &At<'_>) -> Option<Channel> {
    #[derive(Clone, Copy)]
    enum By {
        Sse,
        Webhook,
        Nats,
    }
    let webhook_keys = ["url", "secret_env", "timeout"];
    let fields = reader.fields(at, &[["deliver", "realtime", "revocations"].as_slice(), &webhook_keys].concat())?;
    let realtime = fields.optional(reader, "realtime", Reader::boolean).unwrap_or_default();
    let revocations = fields.optional(reader, "revocations", Reader::boolean).unwrap_or_default();
    let ways = [("sse", By::Sse), ("webhook", By::Webhook), ("nats", By::Nats)];
    let by = fields.required(reader, "deliver", |reader, at| reader.choice(at, &ways))?;
    let deliver = match by {
        By::Webhook => {
            let secret_env = fields.optional(reader, "secret_env", Reader::name);
            let timeout = fields.optional(reader, "timeout", Reader::span).unwrap_or(WEBHOOK_TIMEOUT);
            Deliver::Webhook { url: fields.required(reader, "url", url)?, secret_env, timeout }
        }
        By::Sse | By::Nats => {
            for at in webhook_keys.iter().filter_map(|key| fields.get(key)) {
                reader.problem(&at.place, "this is for `deliver: webhook` alone");
            }
            if matches!(by, By::Sse) { Deliver::Sse } else { Deliver::Nats }
        }
    };
    Some(Channel { deliver, realtime, revocations })
}

fn url(reader: &mut Reader, at: &At<'_>) -> Option<String> {
    let url = reader.text(at)?;
    let host = url.strip_prefix("https://").or(url.strip_prefix("http://")).unwrap_or_default();
    if host.is_empty() || host.starts_with('/') || url.contains(|c: char| c.is_whitespace() || c.is_control()) {
        reader.problem(&at.place, "expected a URL that begins with http:// or https://");
    } else if host.split(['/', '?', '#']).next().is_some_and(|host| host.contains('@')) {
        reader.problem(&at.place, "a name and a password in a URL are not sent; calls are signed with `secret_env`");
    }
    Some(url)
}
