//! HTTP/1.1 by hand: one request on one connection, and its answer, whatever its length is told by.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Longer than any answer may take: `wait` is at most 30 s.
const PATIENCE: Duration = Duration::from_secs(40);

/// What came back.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// A header's value, empty if there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        header(&self.headers, name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON: {error}: {}", self.text()))
    }
}

fn header<'h>(headers: &'h [(String, String)], name: &str) -> &'h str {
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
}

/// Sends a request, and reads the whole answer.
pub(crate) fn ask(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Answer> {
    let mut stream = begin(to, method, path, headers, body.len())?;
    // A body that is too long is answered before all of it is read: then writing fails, and the answer tells why.
    let _ = stream.write_all(body);
    let mut reader = BufReader::new(stream);
    let (status, headers) = head(&mut reader)?;
    let mut body = Vec::new();
    if header(&headers, "transfer-encoding").eq_ignore_ascii_case("chunked") {
        Chunked::new(reader).read_to_end(&mut body)?;
    } else if let Ok(length) = header(&headers, "content-length").parse() {
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
    } else {
        reader.read_to_end(&mut body)?;
    }
    Ok(Answer { status, headers, body })
}

/// Opens a connection for one request, and sends everything but its body.
pub(crate) fn begin(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    length: usize,
) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if length > 0 || method == "POST" {
        text += &format!("content-length: {length}\r\n");
    }
    stream.write_all((text + "\r\n").as_bytes())?;
    Ok(stream)
}

/// The status and the headers of an answer.
pub(crate) fn head(reader: &mut impl BufRead) -> io::Result<(u16, Vec<(String, String)>)> {
    let (first, headers) = request(reader)?;
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(|| wrong(format!("{first:?} is no status line")))?, headers))
}

/// The first line and the headers of what comes: a request has them as an answer has.
pub(crate) fn request(reader: &mut impl BufRead) -> io::Result<(String, Vec<(String, String)>)> {
    let first = line(reader)?;
    let mut headers = Vec::new();
    loop {
        let text = line(reader)?;
        if text.is_empty() {
            return Ok((first, headers));
        }
        let (name, value) = text.split_once(':').ok_or_else(|| wrong(format!("{text:?} is no header")))?;
        headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
}

fn wrong(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut text = String::new();
    if reader.read_line(&mut text)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// The body of an answer that comes in chunks.
pub(crate) struct Chunked<R> {
    reader: R,
    left: usize,
    ended: bool,
}

impl<R: BufRead> Chunked<R> {
    pub(crate) fn new(reader: R) -> Self {
        Chunked { reader, left: 0, ended: false }
    }
}

impl<R: BufRead> Read for Chunked<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            let size = line(&mut self.reader)?;
            let digits = size.split(';').next().unwrap_or_default().trim();
            let wrong = |_| io::Error::new(io::ErrorKind::InvalidData, format!("{size:?} is no length of a chunk"));
            self.left = usize::from_str_radix(digits, 16).map_err(wrong)?;
            self.ended = self.left == 0;
        }
        if self.ended || into.is_empty() {
            return Ok(0);
        }
        let wanted = into.len().min(self.left);
        let read = self.reader.read(&mut into[..wanted])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read;
        if self.left == 0 {
            line(&mut self.reader)?;
        }
        Ok(read)
    }
}
