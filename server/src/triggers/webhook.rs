//! Webhooks: one signed HTTP call for each message, by the Standard Webhooks convention.

use std::error::Error;
use std::time::{Duration, UNIX_EPOCH};

use axum::body::Bytes;
use axum::http::{HeaderMap, Request, StatusCode, Uri, header};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dataflows::time::Millis;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{self, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use sha2::Sha256;

use super::{Outcome, Parcel};
use crate::clock;

/// Connections are kept open for so long in case another message follows.
const IDLE: Duration = Duration::from_secs(30);
/// What an endpoint says besides its status is read, so that the connection can serve again; to no end, it is not.
const ANSWER_BYTES_MAX: usize = 1 << 16;
const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);

pub(super) type Client = legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// What makes the calls of all channels. It follows no redirects, and trusts whom the system trusts.
pub(super) fn client() -> Client {
    let mut roots = RootCertStore::empty();
    // Where the system trusts nobody, no https endpoint is either, and each attempt says so.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let tls = ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions of TLS")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    let mut builder = legacy::Client::builder(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE).build(connector)
}

/// An endpoint.
pub(super) struct Webhook {
    client: Client,
    url: Uri,
    secret: Option<Vec<u8>>,
    timeout: Duration,
}

impl Webhook {
    /// An endpoint with the secret of this environment variable, or why there can be none.
    pub(super) fn new(client: Client, url: &str, secret_env: Option<&str>, timeout: Millis) -> Result<Webhook, String> {
        let secret = secret_env.map(|name| {
            let text = std::env::var(name).map_err(|_| format!("the environment variable {name} holds no secret"))?;
            secret(&text).map_err(|why| format!("the secret in the environment variable {name} {why}"))
        });
        Ok(Webhook {
            client,
            url: url.parse().map_err(|error| format!("its url cannot be used: {error}"))?,
            secret: secret.transpose()?,
            timeout: Duration::from_millis(timeout.unsigned_abs()),
        })
    }

    /// Makes one call.
    pub(super) async fn post(&self, parcel: &Parcel) -> Outcome {
        let (key, timestamp) = (parcel.key(), clock::now() / 1_000);
        let mut request = Request::post(self.url.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("thalweg/", env!("CARGO_PKG_VERSION")))
            .header("webhook-id", &key)
            .header("webhook-timestamp", timestamp);
        if let Some(secret) = &self.secret {
            request = request.header("webhook-signature", sign(secret, &key, timestamp, &parcel.body));
        }
        let request = request.body(Full::from(parcel.body.clone())).expect("ids and signatures fit into headers");
        let response = match tokio::time::timeout(self.timeout, self.client.request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Outcome::Failed(told(&error), None),
            Err(_) => return Outcome::Failed(format!("no answer within {} ms", self.timeout.as_millis()), None),
        };
        let outcome = outcome(response.status(), response.headers());
        let rest = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect();
        let _ = tokio::time::timeout(ANSWER_TIME_MAX, rest).await;
        outcome
    }
}

/// The bytes of a secret as it is written: base64 after `whsec_`, else as they are.
fn secret(text: &str) -> Result<Vec<u8>, &'static str> {
    let bytes = match text.strip_prefix("whsec_") {
        Some(base64) => BASE64_STANDARD.decode(base64).map_err(|_| "is not base64 after its `whsec_`")?,
        None => text.as_bytes().to_vec(),
    };
    if bytes.is_empty() { Err("is empty") } else { Ok(bytes) }
}

fn sign(secret: &[u8], key: &str, timestamp: Millis, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length will do");
    mac.update(format!("{key}.{timestamp}.").as_bytes());
    mac.update(body.as_bytes());
    format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()))
}

/// An error with all of its causes.
fn told(error: &dyn Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        told += &format!(": {error}");
        cause = error.source();
    }
    told
}

/// What an answer means.
fn outcome(status: StatusCode, headers: &HeaderMap) -> Outcome {
    let why = format!("the endpoint answered {status}");
    match status.as_u16() {
        200..=299 => Outcome::Delivered,
        410 => Outcome::Gone(why),
        408 | 429 | 500..=599 => {
            let asks = headers.get(header::RETRY_AFTER).and_then(|asks| patience(asks.to_str().ok()?));
            Outcome::Failed(why, asks)
        }
        300..=399 => Outcome::Refused(why + ", and redirects are not followed"),
        _ => Outcome::Refused(why),
    }
}

/// How long an endpoint asks to be left alone: seconds, or until a date.
fn patience(asks: &str) -> Option<Duration> {
    if let Ok(seconds) = asks.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(asks).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(until.saturating_sub(Duration::from_millis(clock::now().unsigned_abs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first vector is that of the specification, the second was made with its Python library.
    #[test]
    fn signatures_are_those_of_the_standard() {
        let secret = secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a secret");
        let signed = sign(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let body = concat!(
            r#"{"type":"journey.message.triggered","timestamp":"2026-11-22T00:40:00Z","data":{"tenant":"acme","#,
            r#""user_id":"u1","journey":"welcome","transition":"step1->wait","idempotency_key":"acme/welcome/u1/3"}}"#,
        );
        let signed = sign(&secret, "trg_acme_welcome_u1_00000000000000000042", 1_795_308_000, body);
        assert_eq!(signed, "v1,tUX+xs5PoMFXPtuUDB6Cjk6mfhkRlCGV/M6DlIlSaYA=");
    }

    #[test]
    fn secrets_are_base64_after_their_mark_and_else_as_they_are() {
        assert_eq!(secret("plain").as_deref(), Ok(b"plain".as_slice()));
        assert_eq!(secret("whsec_AAEC").as_deref(), Ok([0, 1, 2].as_slice()));
        assert!(secret("whsec_?").is_err() && secret("whsec_").is_err() && secret("").is_err());
    }

    #[test]
    fn answers_mean_what_the_standard_says() {
        let answered = |status: u16, asks: Option<&str>| {
            let mut headers = HeaderMap::new();
            asks.map(|asks| headers.insert(header::RETRY_AFTER, asks.parse().expect("a header")));
            outcome(StatusCode::from_u16(status).expect("a status"), &headers)
        };
        assert_eq!([answered(200, None), answered(204, None)], [Outcome::Delivered, Outcome::Delivered]);
        assert!(matches!(answered(410, None), Outcome::Gone(_)));
        for status in [408, 429, 500, 503, 599] {
            assert!(matches!(answered(status, None), Outcome::Failed(_, None)), "{status}");
            let asked = answered(status, Some("7"));
            assert!(matches!(asked, Outcome::Failed(_, Some(after)) if after.as_secs() == 7), "{status}: {asked:?}");
        }
        for status in [301, 307, 400, 401, 404, 422] {
            assert!(matches!(answered(status, Some("7")), Outcome::Refused(_)), "{status}");
        }
    }

    #[test]
    fn patience_is_asked_for_in_seconds_or_until_a_date() {
        assert_eq!(patience("120"), Some(Duration::from_secs(120)));
        assert_eq!(patience("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        let far = patience("Fri, 01 Jan 2100 00:00:00 GMT").expect("a date");
        assert!(far > Duration::from_hours(24), "{far:?}");
        assert_eq!(patience("soon"), None);
    }
}
