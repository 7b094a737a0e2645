//! Where alerts go: a webhook. It is called from a consumer of OUT, never from the fold, so a slow receiver holds up nobody but itself.
//!
//! At least once and in order: an event is acknowledged when the receiver has taken it. It carries the event's id as its idempotency key,
//! so a receiver that saw it before can tell.

use std::time::Duration;

use bytes::Bytes;

/// How long a receiver may take for one event; well below the time after which the broker gives it out again.
const CALL_MAX: Duration = Duration::from_secs(5);
/// The first wait after a failure; each one doubles it …
const WAIT_MIN: Duration = Duration::from_secs(1);
/// … up to this.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Most bytes of a refusal's body that are shown.
const SHOWN_BYTES: usize = 200;

/// A receiver of alerts.
#[derive(Debug, Clone)]
pub struct Webhook {
    url: String,
    agent: ureq::Agent,
}

/// What became of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The receiver has it.
    Taken,
    /// It will never take this one: trying again is of no use.
    Refused(String),
    /// It is away, slow or busy: worth trying again.
    Failed(String),
}

impl Webhook {
    /// A receiver at an http:// or https:// address. Errors, in words, on any other.
    pub fn new(url: &str) -> Result<Self, String> {
        if !(url.starts_with("http://") || url.starts_with("https://")) {
            return Err(format!("{url:?} is no http:// or https:// address"));
        }
        // The status is an answer to look at, not an error of the client.
        let config = ureq::Agent::config_builder().timeout_global(Some(CALL_MAX)).http_status_as_error(false).user_agent("plimsoll");
        Ok(Self { url: url.to_owned(), agent: config.build().new_agent() })
    }

    /// Posts one CloudEvent as it stands in OUT.
    pub async fn post(&self, id: &str, event: Bytes) -> Answer {
        let (webhook, id) = (self.clone(), id.to_owned());
        // The client blocks; a blocked thread of the pool holds up nothing else.
        tokio::task::spawn_blocking(move || webhook.call(&id, &event))
            .await
            .unwrap_or_else(|error| Answer::Failed(format!("the call ended without an answer: {error}")))
    }

    fn call(&self, id: &str, event: &[u8]) -> Answer {
        let request = self.agent.post(&self.url).header("content-type", "application/cloudevents+json").header("idempotency-key", id);
        match request.send(event) {
            Ok(mut response) => {
                let status = response.status().as_u16();
                let body = response.body_mut().with_config().limit(4_096).read_to_string().unwrap_or_default();
                judge(status, plimsoll_schemas::frame::cut(body.trim(), SHOWN_BYTES))
            }
            Err(error) => Answer::Failed(error.to_string()),
        }
    }
}

/// A client's error will be the same next time, but for those that say "later".
fn judge(status: u16, body: &str) -> Answer {
    match status {
        200..=299 => Answer::Taken,
        408 | 425 | 429 => Answer::Failed(format!("status {status}: {body}")),
        400..=499 => Answer::Refused(format!("status {status}: {body}")),
        _ => Answer::Failed(format!("status {status}: {body}")),
    }
}

/// How long to wait after so many failures in a row: doubling, and a part of it by the event's id, so that many sinks that failed
/// together do not come back together.
pub fn wait_after(failures: u32, id: &str) -> Duration {
    let full = WAIT_MIN.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(WAIT_MAX);
    let spread = id.bytes().fold(failures, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte))) % 256;
    full / 2 + full / 2 * spread / 255
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_go_better_is_tried_again() {
        let check = |status: u16, taken: bool, again: bool| {
            let answer = judge(status, "x");
            assert_eq!((answer == Answer::Taken, matches!(answer, Answer::Failed(_))), (taken, again), "{status}");
        };
        check(200, true, false);
        check(204, true, false);
        check(301, false, true);
        check(400, false, false);
        check(404, false, false);
        check(408, false, true);
        check(429, false, true);
        check(500, false, true);
        check(503, false, true);
    }

    #[test]
    fn waits_double_up_to_a_minute_and_differ_by_event() {
        for failures in 1..40 {
            let full = Duration::from_secs(1 << (failures - 1).min(6)).min(WAIT_MAX);
            let wait = wait_after(failures, "east/1/4711/0");
            assert!(wait >= full / 2 && wait <= full, "{failures}: {wait:?}");
        }
        assert_ne!(wait_after(5, "east/1/4711/0"), wait_after(5, "east/1/4711/1"));
    }

    #[test]
    fn an_address_that_cannot_be_called_is_refused_at_once() {
        assert!(Webhook::new("ftp://x").expect_err("no HTTP").contains("http://"));
        assert!(Webhook::new("https://example.org/hook").is_ok());
    }
}
