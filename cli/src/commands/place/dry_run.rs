//! What a request would get now, asked of the processor itself: nothing is appended to the log, nothing is leased.

use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::out::Decided;
use plimsoll_schemas::request::Place;
use serde_json::json;

use crate::error::Error;
use crate::http;

/// The decision that the processor would make. Its id is `dry-run`.
pub async fn dry_run(processor: &str, tenant: &TenantId, place: &Place) -> Result<Decided, Error> {
    let url = format!("{}/dry-run", processor.trim_end_matches('/'));
    let question = json!({ "tenant": tenant, "place": place }).to_string();
    let (status, answer) = http::post_json(&url, &question).await.map_err(|detail| Error::NoProcessor { url: url.clone(), detail })?;
    let refused = |sentence: String| Err(Error::Refused(sentence));
    match status {
        200 => serde_json::from_str(&answer)
            .or_else(|error| refused(format!("{url} answers what is no decision ({error}): is it of the same version as this command?"))),
        400 => refused(format!("the processor cannot read this request ({url}): {answer}")),
        404 | 405 => refused(format!("{url} is not there: is it a processor, and as new as this command?")),
        503 => refused(format!("the processor cannot say now ({url}): {answer}. Ask again in a moment")),
        other => refused(format!("{url} answers {other}: {answer}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_schemas::out::Outcome;
    use plimsoll_schemas::request::Bundle;
    use serde_json::Value;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    fn place() -> Place {
        Place { request_id: "r-1".to_owned(), bundles: vec![Bundle::default()], ..Place::default() }
    }

    fn tenant() -> TenantId {
        "research".parse().expect("a token")
    }

    fn decided() -> Value {
        json!({
            "decision_id": "dry-run", "decision_seq": 0, "request_id": "r-1", "tenant": "research", "outcome": "rejected",
            "reason": "no_devices", "detail": "the cell has no GPU", "position": {"epoch": 0, "sequence": 9}, "policy": "hybrid@1",
            "hosts_considered": 0, "hosts_feasible": 0, "refused": {}, "assignments": [], "runners_up": [],
        })
    }

    /// Reads one whole request with a body.
    async fn read(stream: &mut TcpStream) -> (String, Value) {
        let mut bytes = Vec::new();
        loop {
            let mut part = [0; 1024];
            let read = stream.read(&mut part).await.expect("readable");
            bytes.extend_from_slice(&part[..read]);
            let text = String::from_utf8(bytes.clone()).expect("text");
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("a length");
            if body.len().to_string() == length {
                return (head.lines().next().expect("a first line").to_owned(), serde_json::from_str(body).expect("JSON"));
            }
        }
    }

    /// What comes of one answer, and what was asked.
    async fn answered(answer: &str) -> (Result<Decided, String>, (String, Value)) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let processor = format!("http://{}/", listener.local_addr().expect("bound"));
        let serve = async {
            let (mut stream, _) = listener.accept().await.expect("somebody comes");
            let asked = read(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.expect("writable");
            asked
        };
        let (tenant, place) = (tenant(), place());
        let (result, asked) = tokio::join!(dry_run(&processor, &tenant, &place), serve);
        (result.map_err(|error| error.to_string()), asked)
    }

    async fn check_refused(answer: &str, expected: &str) {
        let error = answered(answer).await.0.expect_err(expected);
        assert!(error.contains(expected), "{error}");
    }

    #[tokio::test]
    async fn the_processor_is_asked_and_its_decision_comes_back() {
        let (result, (line, asked)) = answered(&format!("HTTP/1.1 200 OK\r\n\r\n{}", decided())).await;
        let decided = result.expect("a decision");
        assert_eq!((decided.decision_id.as_str(), decided.outcome), ("dry-run", Outcome::Rejected));
        assert_eq!(line, "POST /dry-run HTTP/1.1");
        assert_eq!(asked, json!({ "tenant": "research", "place": place() }));
    }

    #[tokio::test]
    async fn a_refusal_is_said_with_its_sentence_and_what_to_do() {
        check_refused("HTTP/1.1 400 Bad Request\r\n\r\nplace is missing\n", "cannot read this request").await;
        check_refused("HTTP/1.1 400 Bad Request\r\n\r\nplace is missing\n", "place is missing").await;
        check_refused("HTTP/1.1 503 Service Unavailable\r\n\r\nnot ready", "not ready. Ask again").await;
        check_refused("HTTP/1.1 404 Not Found\r\n\r\n", "as new as this command").await;
        check_refused("HTTP/1.1 500 Internal Server Error\r\n\r\nbroken", "answers 500: broken").await;
        check_refused("HTTP/1.1 200 OK\r\n\r\n{}", "no decision").await;
        check_refused("SSH-2.0\r\n", "not HTTP").await;
    }

    #[tokio::test]
    async fn where_nobody_answers_it_is_said_where_and_what_to_do() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let processor = format!("http://{}", listener.local_addr().expect("bound"));
        drop(listener);
        let error = dry_run(&processor, &tenant(), &place()).await.expect_err("nobody").to_string();
        assert!(error.contains(&format!("no processor answers at {processor}/dry-run")) && error.contains("--processor"), "{error}");
    }
}
