//! The fake server at a port, over a WebSocket: one client at a time.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tungstenite::{Error, Message, WebSocket};

use crate::wire::Said;
use crate::{Fake, wire};

/// How long a read may keep what is to be said from being said.
const TURN: Duration = Duration::from_millis(2);

/// Serves at the port until it is ended. 98, `EADDRINUSE`, when the port is another's.
pub(crate) fn serve(fake: &Arc<Fake>, port: u16) -> ExitCode {
    let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) else { return ExitCode::from(98) };
    let streams = wire::listen(false);
    for stream in listener.incoming().flatten() {
        let said = streams.open_common();
        let Ok(mut socket) = tungstenite::accept_hdr(stream, protocol) else { continue };
        let _ = socket.get_ref().set_read_timeout(Some(TURN));
        talk(fake, &mut socket, &said);
    }
    ExitCode::SUCCESS
}

#[expect(clippy::result_large_err, reason = "the signature is the library's")]
fn protocol(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    let mcp = tungstenite::http::HeaderValue::from_static("mcp");
    match request.headers().get("sec-websocket-protocol") {
        Some(asked) if *asked == mcp => {
            response.headers_mut().insert("sec-websocket-protocol", mcp);
            Ok(response)
        }
        _ => Err(ErrorResponse::new(Some("the subprotocol is `mcp`".to_owned()))),
    }
}

fn talk(fake: &Arc<Fake>, socket: &mut WebSocket<TcpStream>, said: &Receiver<Said>) {
    loop {
        match said.try_recv() {
            Ok(Said::Message(message)) => {
                if socket.send(Message::text(message.to_string())).is_err() {
                    return;
                }
                continue;
            }
            Ok(Said::Cut) | Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {}
        }
        match socket.read() {
            Ok(Message::Text(text)) => match serde_json::from_str(&text) {
                Ok(message) => fake.hear(message),
                Err(error) => eprintln!("not JSON: {error}"),
            },
            Ok(_) => {}
            Err(Error::Io(error)) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}
