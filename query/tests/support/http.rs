//! As much of HTTP as the tests need.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Status and body of a request with a body.
pub async fn post(to: SocketAddr, content_type: &str, accept: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let head = format!(
        "POST /sql HTTP/1.1\r\nhost: {to}\r\ncontent-type: {content_type}\r\naccept: {accept}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    exchange(to, &[head.as_bytes(), body].concat()).await
}

/// Status and body of a request without a body.
pub async fn get(to: SocketAddr, path: &str) -> (u16, String) {
    let (status, body) = exchange(to, format!("GET {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n\r\n").as_bytes()).await;
    (status, String::from_utf8(body).expect("utf-8"))
}

async fn exchange(to: SocketAddr, request: &[u8]) -> (u16, Vec<u8>) {
    let mut socket = TcpStream::connect(to).await.expect("connects");
    socket.write_all(request).await.expect("sends");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.expect("receives");
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    let head = String::from_utf8_lossy(&answer[..end]).to_string();
    let status = head.split_whitespace().nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, answer[end..].to_vec())
}
