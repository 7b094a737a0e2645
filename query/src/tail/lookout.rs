//! Asks every processor once a beat how it stands, and has another one followed where that is better (`choice`).

use std::time::Duration;

use futures::future::join_all;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::choice::Choice;
use super::processor::{Processor, Processors};
use super::wire::Status;
use super::{Followed, Tail};

/// How often they are asked.
const BEAT: Duration = Duration::from_secs(1);
/// How long one may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Looks out until told to stop.
pub(super) async fn look_out(tail: Tail, processors: Processors, stop: CancellationToken) {
    let mut choice = Choice::new();
    let mut followed = Followed { index: 0, url: processors.all()[0].url().to_owned(), changes_total: 0 };
    tail.follows(followed.clone());
    let mut refused = vec![None; processors.all().len()];
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let asking = async {
            beat.tick().await;
            join_all(processors.all().iter().map(|processor| ask(&tail, processor))).await
        };
        let answers = tokio::select! {
            () = stop.cancelled() => return,
            answers = asking => answers,
        };
        for (answer, (processor, said)) in answers.iter().zip(processors.all().iter().zip(&mut refused)) {
            say_if_refused(processor, answer, said);
        }
        let statuses: Vec<_> = answers.into_iter().map(Answer::usable).collect();
        let seen: Vec<_> = statuses.iter().map(|status| status.as_ref().map(|status| status.position)).collect();
        if let Some(change) = choice.beat(&seen, tail.standing()) {
            let to = processors.all()[change.to].url();
            tracing::warn!(from = followed.url, to, why = %change.why, "another tail is followed from now on");
            followed = Followed { index: change.to, url: to.to_owned(), changes_total: followed.changes_total + 1 };
            tail.follows(followed.clone());
            processors.follow(change.to);
        }
        tail.processor_status(statuses.into_iter().nth(choice.followed()).flatten());
    }
}

/// What came of asking.
enum Answer {
    /// It can be followed.
    Usable(Status),
    /// It must not be followed. With the reason.
    Refused(String),
    /// There was none.
    Absent,
}

impl Answer {
    fn usable(self) -> Option<Status> {
        match self {
            Self::Usable(status) => Some(status),
            Self::Refused(_) | Self::Absent => None,
        }
    }
}

async fn ask(tail: &Tail, processor: &Processor) -> Answer {
    match tokio::time::timeout(ANSWER, processor.status()).await {
        Ok(Ok(status)) if status.cell == tail.cell().as_str() => Answer::Usable(status),
        Ok(Ok(status)) => Answer::Refused(format!("it is a tail of cell {}, this service answers for cell {}", status.cell, tail.cell())),
        // Whoever follows it says why.
        Ok(Err(_)) | Err(_) => Answer::Absent,
    }
}

/// Says it once, and again only after it was something else.
fn say_if_refused(processor: &Processor, answer: &Answer, said: &mut Option<String>) {
    let now = match answer {
        Answer::Refused(why) => Some(why.clone()),
        Answer::Usable(_) => None,
        Answer::Absent => return,
    };
    if let Some(why) = now.as_ref().filter(|_| now != *said) {
        tracing::error!(url = processor.url(), why, "a tail is refused");
    }
    *said = now;
}
