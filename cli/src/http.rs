//! One question to a service of ours over HTTP, and its whole answer. Plain `http://` only; nothing is followed and nothing is kept open.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long an answer may take and how large it may be.
#[derive(Debug, Clone, Copy)]
struct Limits {
    timeout: Duration,
    bytes_max: u64,
}

const GET: Limits = Limits { timeout: Duration::from_secs(2), bytes_max: 64 << 10 };
/// A decision names every refused GPU of the cell.
const POST: Limits = Limits { timeout: Duration::from_secs(30), bytes_max: 8 << 20 };

/// Status and body of `http://host:port/path`; the error is a sentence.
pub async fn get(url: &str) -> Result<(u16, String), String> {
    exchange("GET", url, "", GET).await
}

/// Status and body of the answer to a JSON text; the error is a sentence.
pub async fn post_json(url: &str, json: &str) -> Result<(u16, String), String> {
    exchange("POST", url, json, POST).await
}

async fn exchange(method: &str, url: &str, json: &str, limits: Limits) -> Result<(u16, String), String> {
    let (address, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).ok_or_else(|| format!("{url} is no http:// address"))?;
    let content = if json.is_empty() { String::new() } else { format!("Content-Type: application/json\r\nContent-Length: {}\r\n", json.len()) };
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("{method} /{path} HTTP/1.1\r\nHost: {address}\r\n{content}Connection: close\r\n\r\n{json}").as_bytes()).await?;
        let mut bytes = Vec::new();
        stream.take(limits.bytes_max + 1).read_to_end(&mut bytes).await?;
        Ok::<_, std::io::Error>(bytes)
    };
    let bytes = tokio::time::timeout(limits.timeout, exchange)
        .await
        .map_err(|_| format!("no answer in {} s", limits.timeout.as_secs()))?
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > limits.bytes_max {
        return Err(format!("an answer of more than {} KiB", limits.bytes_max >> 10));
    }
    parse(&String::from_utf8_lossy(&bytes)).ok_or_else(|| "an answer that is not HTTP".to_owned())
}

fn parse(text: &str) -> Option<(u16, String)> {
    let status = text.strip_prefix("HTTP/1.")?.split_whitespace().nth(1)?.parse().ok()?;
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Some((status, body.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_status_and_a_body() {
        assert_eq!(parse("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 3\r\n\r\nno\n"), Some((503, "no".to_owned())));
        assert_eq!(parse("SSH-2.0"), None);
    }
}
