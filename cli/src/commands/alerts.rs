//! `plimsoll alerts`: what fires, from SQL; each change as it happens, from OUT; or every change to a webhook, remembered by the broker.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::{AckKind, Message};
use clap::Args;
use futures::StreamExt;
use plimsoll_schemas::id::HostId;
use plimsoll_schemas::out::{CloudEvent, Payload};
use tokio::time::{Instant, interval, sleep, timeout};

use crate::amount::duration;
use crate::broker::{ACK_WAIT, Begin, Broker, Since};
use crate::endpoint::{self, Endpoints};
use crate::error::Error;
use crate::output::{Flag, Format};
use crate::postgres;
use crate::sink::{Answer, Webhook, wait_after};

/// Where alerts stand in OUT.
const TAIL: &str = "alert";
/// How long the broker may be away before it is asked anew.
const RECONNECT: Duration = Duration::from_secs(2);
/// How long a last acknowledgement may take.
const ACK_MAX: Duration = Duration::from_secs(5);

/// Which alerts, and where to.
#[derive(Debug, Args)]
pub struct Options {
    /// Resolved ones as well, newest first
    #[arg(long, conflicts_with_all = ["follow", "webhook"])]
    all: bool,
    /// Go on and print each as it fires and resolves
    #[arg(long)]
    follow: bool,
    /// Post each change to this address, until stopped; what it does not take is sent again
    #[arg(long, value_name = "URL", value_parser = Webhook::new, conflicts_with = "follow")]
    webhook: Option<Webhook>,
    /// Under which name the broker remembers what the webhook has taken
    #[arg(long, default_value = "plimsoll-alerts", value_parser = consumer_name, requires = "webhook")]
    consumer: String,
    /// When that name is new: begin with everything that OUT keeps, not with what comes from now on
    #[arg(long, requires = "webhook")]
    from_start: bool,
    /// How long one event is tried before it is left out with a word on standard error, such as 1h
    #[arg(long, default_value = "24h", value_parser = duration, requires = "webhook")]
    give_up_after: Duration,
    #[command(flatten)]
    output: Flag,
    #[command(flatten)]
    endpoint: endpoint::Flags,
}

/// Lists, follows or delivers.
pub async fn run(options: Options) -> Result<ExitCode, Error> {
    let endpoints = options.endpoint.resolve()?;
    if let Some(webhook) = options.webhook {
        let begin = if options.from_start { Begin::Start } else { Begin::Now };
        let sink = Sink { webhook, name: options.consumer, begin, give_up_after: options.give_up_after, format: options.output.format };
        return sink.run(&endpoints).await;
    }
    if options.follow {
        return follow(&endpoints, options.output.format).await;
    }
    postgres::ask(&endpoints, &question(options.all)).await?.print(options.output.format)?;
    Ok(ExitCode::SUCCESS)
}

fn question(all: bool) -> String {
    let filter = if all { "" } else { "WHERE state = 'firing' " };
    format!(
        "SELECT severity, state, rule, host, device_key, signal, value, threshold, began_at, fired_at, resolved_at, cause, summary FROM alerts {filter}\
         ORDER BY fired_at DESC, alert_id LIMIT 1000"
    )
}

/// The broker's own rule for names.
fn consumer_name(text: &str) -> Result<String, String> {
    // A host's token has the same letters.
    text.parse::<HostId>().map(|name| name.to_string()).map_err(|_| format!("{text:?} is not 1 to 128 of A-Z a-z 0-9 _ -"))
}

async fn follow(endpoints: &Endpoints, format: Format) -> Result<ExitCode, Error> {
    let broker = Broker::connect(endpoints).await?;
    let mut follow = broker.follow(&[TAIL.to_owned()], Since::Now).await?;
    loop {
        tokio::select! {
            next = follow.next() => {
                let (event, bytes) = next?;
                print(&event, &bytes, format)?;
            }
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// One line per change; as JSON the event as it stands in OUT.
fn print(event: &CloudEvent, bytes: &[u8], format: Format) -> Result<(), Error> {
    let text = match (&event.data, format) {
        (_, Format::Json) => String::from_utf8_lossy(bytes).into_owned(),
        (Payload::Alert(alert), Format::Table) => format!(
            "{} {:<9} {:<9} {} {}={} {}",
            event.time,
            alert.state.code(),
            alert.severity.code(),
            alert.dedup_key,
            alert.signal.code(),
            alert.value,
            alert.summary.as_deref().unwrap_or_default()
        ),
        (Payload::Alert(alert), Format::Csv) => {
            format!("{},{},{},{},{},{}", event.time, alert.state.code(), alert.severity.code(), alert.dedup_key, alert.signal.code(), alert.value)
        }
        (
            Payload::Decided(_)
            | Payload::Distributed(_)
            | Payload::Lease(_)
            | Payload::Device(_)
            | Payload::Host(_)
            | Payload::Rejected(_)
            | Payload::Gap(_)
            | Payload::Policy(_)
            | Payload::Preemption(_)
            | Payload::Pace(_),
            Format::Table | Format::Csv,
        ) => return Ok(()),
    };
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush()).map_err(Error::io("cannot write"))
}

/// Says on standard error what only a person can do something about.
fn warn(text: &str) {
    // Nothing is left to do where even stderr is gone.
    let _ = writeln!(std::io::stderr(), "plimsoll alerts: {text}");
}

/// Delivers every alert to a webhook, in order, each until it is taken.
struct Sink {
    webhook: Webhook,
    name: String,
    begin: Begin,
    give_up_after: Duration,
    format: Format,
}

impl Sink {
    async fn run(&self, endpoints: &Endpoints) -> Result<ExitCode, Error> {
        // The first time, a broker that is not there is an error; later it is waited for.
        let broker = Broker::connect(endpoints).await?;
        let mut messages = broker.remembered(&self.name, TAIL, self.begin).await?;
        warn(&format!("delivering as {}", self.name));
        let stop = tokio::signal::ctrl_c();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                biased;
                _ = &mut stop => return Ok(ExitCode::SUCCESS),
                ended = self.deliver_all(&mut messages) => ended?,
            }
            messages = tokio::select! {
                biased;
                _ = &mut stop => return Ok(ExitCode::SUCCESS),
                messages = self.reopen(&broker) => messages,
            };
        }
    }

    /// Until the broker is gone. Errors only if nothing can be printed any more.
    async fn deliver_all(&self, messages: &mut pull::Stream) -> Result<(), Error> {
        while let Some(next) = messages.next().await {
            match next {
                Ok(message) => self.deliver(&message).await?,
                Err(error) => {
                    warn(&format!("the broker is away: {error}"));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn reopen(&self, broker: &Broker) -> pull::Stream {
        loop {
            sleep(RECONNECT).await;
            match broker.remembered(&self.name, TAIL, self.begin).await {
                Ok(messages) => return messages,
                Err(error) => warn(&error.to_string()),
            }
        }
    }

    async fn deliver(&self, message: &Message) -> Result<(), Error> {
        match serde_json::from_slice::<CloudEvent>(&message.payload) {
            Ok(event) => {
                if self.post(&event, message).await {
                    print(&event, &message.payload, self.format)?;
                }
            }
            Err(error) => warn(&format!("{} holds what is no event and is left out: {error}", message.subject)),
        }
        // If this is lost, the event comes again under the same id.
        match timeout(ACK_MAX, message.double_ack()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn(&format!("an acknowledgement was lost, the event will come again: {error}")),
            Err(_) => warn("an acknowledgement was lost, the event will come again"),
        }
        Ok(())
    }

    /// Tries until the receiver has it, says it never will, or the time is up; says whether it has it.
    async fn post(&self, event: &CloudEvent, message: &Message) -> bool {
        let began = Instant::now();
        let mut failures = 0;
        loop {
            let detail = match self.webhook.post(&event.id, message.payload.clone()).await {
                Answer::Taken => return true,
                Answer::Refused(detail) => {
                    warn(&format!("event {} was refused and is left out: {detail}", event.id));
                    return false;
                }
                Answer::Failed(detail) => detail,
            };
            failures += 1;
            if began.elapsed() >= self.give_up_after {
                warn(&format!("event {} is left out after {failures} tries: {detail}", event.id));
                return false;
            }
            let wait = wait_after(failures, &event.id);
            warn(&format!("event {} was not taken ({detail}), next try in {} ms", event.id, wait.as_millis()));
            hold(message, wait).await;
        }
    }
}

/// Waits, and tells the broker meanwhile that the message is not forgotten.
async fn hold(message: &Message, wait: Duration) {
    let until = sleep(wait);
    tokio::pin!(until);
    let mut alive = interval(ACK_WAIT / 3);
    loop {
        tokio::select! {
            () = &mut until => return,
            _ = alive.tick() => {
                // A sign of life that is lost costs a second delivery, which the receiver can tell.
                let _ = message.ack_with(AckKind::Progress).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolved_alerts_are_left_out_unless_asked_for() {
        assert!(question(false).contains("WHERE state = 'firing' ORDER BY"));
        assert!(!question(true).contains("WHERE"));
    }

    #[test]
    fn a_consumers_name_is_what_the_broker_takes() {
        assert_eq!(consumer_name("on-call_1"), Ok("on-call_1".to_owned()));
        assert!(consumer_name("on call").is_err() && consumer_name("a.b").is_err());
    }
}
