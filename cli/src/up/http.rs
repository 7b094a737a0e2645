//! One GET to a service on loopback.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(2);
const BYTES_MAX: u64 = 64 << 10;

/// Status and body of `http://host:port/path`; the error is a sentence.
pub async fn get(url: &str) -> Result<(u16, String), String> {
    let (address, path) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).ok_or_else(|| format!("{url} is no http:// address"))?;
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(format!("GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let mut bytes = Vec::new();
        stream.take(BYTES_MAX).read_to_end(&mut bytes).await?;
        Ok::<_, std::io::Error>(bytes)
    };
    let bytes = tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| "no answer in 2 s".to_owned())?.map_err(|error| error.to_string())?;
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
