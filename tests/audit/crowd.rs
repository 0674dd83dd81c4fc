//! Strangers: many clients beside those of a round, and how each was answered.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tollgate_support::tokens::long_token;

use super::record::{Shared, shared};

const PATIENCE: Duration = Duration::from_secs(10);
/// Longer than the gateway may take to end an idle connection.
const HELD: Duration = Duration::from_secs(10);

/// How a request for a socket was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Served,
    /// The gateway refused, by a status or a close code.
    Refused(u16),
    /// Nothing arrived in time, or the connection ended without a word.
    Nothing(String),
}

/// What a stranger does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// Connects and says nothing.
    Idle,
    /// Sends a request's head, a byte at a time.
    Slow,
    /// Asks for a socket and keeps it for a while.
    Full(Duration),
}

/// Many strangers that connect again and again until this is dropped.
pub struct Crowd {
    _tasks: JoinSet<()>,
    answers: Shared<Vec<Answer>>,
}

impl Crowd {
    /// Starts `size` strangers that take these habits and addresses in turn.
    pub fn gather(to: &str, size: usize, habits: &[Habit], from: &[Ipv4Addr]) -> Self {
        let (mut tasks, answers) = (JoinSet::new(), shared(Vec::new()));
        for n in 0..size {
            let (habit, from) = (habits[n % habits.len()], from[n % from.len()]);
            let (to, answers) = (to.to_owned(), answers.clone());
            tasks.spawn(async move {
                loop {
                    come(&to, from, habit, &answers).await;
                    sleep(Duration::from_millis(fastrand::u64(50..400))).await;
                }
            });
        }
        Self { _tasks: tasks, answers }
    }

    /// All answers to requests for a socket so far.
    pub fn answers(&self) -> Vec<Answer> {
        self.answers.lock().clone()
    }
}

async fn come(to: &str, from: Ipv4Addr, habit: Habit, answers: &Shared<Vec<Answer>>) {
    if let Habit::Full(held) = habit {
        let (answer, stream) = knock(to, from, &long_token("stranger")).await;
        answers.lock().push(answer);
        if stream.is_some() {
            sleep(held).await;
        }
        return;
    }

    let Ok(mut stream) = connect(to, from).await else { return };
    let began = Instant::now();
    let mut letters = request(to, "nobody").into_bytes().into_iter();

    while began.elapsed() < HELD {
        if habit == Habit::Slow
            && let Some(letter) = letters.next()
            && stream.write_all(&[letter]).await.is_err()
        {
            return;
        }
        // Any answer ends the visit, as does the end of the connection.
        if timeout(Duration::from_millis(300), stream.read(&mut [0; 64])).await.is_ok() {
            return;
        }
    }
}

async fn connect(to: &str, from: Ipv4Addr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(to.parse().map_err(std::io::Error::other)?).await
}

fn request(to: &str, token: &str) -> String {
    format!(
        "GET /ws HTTP/1.1\r\nHost: {to}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Authorization: Bearer {token}\r\n\r\n"
    )
}

/// Asks for a socket. Returns it if it was opened.
pub async fn knock(to: &str, from: Ipv4Addr, token: &str) -> (Answer, Option<TcpStream>) {
    let mut stream = match timeout(PATIENCE, connect(to, from)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return (Answer::Nothing(error.to_string()), None),
        Err(_) => return (Answer::Nothing("no connection in time".to_owned()), None),
    };

    // A client that is refused before it asks may be unable to ask, and is answered all the same.
    let _ = stream.write_all(request(to, token).as_bytes()).await;

    let mut read = Vec::new();
    let began = Instant::now();
    loop {
        if let Some(answer) = understand(&read) {
            let served = answer == Answer::Served;
            return (answer, served.then_some(stream));
        }
        let left = PATIENCE.saturating_sub(began.elapsed());
        let why = match timeout(left, stream.read_buf(&mut read)).await {
            Ok(Ok(1..)) => continue,
            Ok(Ok(0)) => "ended without an answer".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        return (Answer::Nothing(why), None);
    }
}

/// Reads an answer: a refusing status, or the first frame of a socket. `None` while the answer
/// is incomplete.
fn understand(read: &[u8]) -> Option<Answer> {
    let end = read.windows(4).position(|w| w == b"\r\n\r\n")?;
    let status = std::str::from_utf8(read.get(9..12)?).ok()?.parse().ok()?;
    if status != 101 {
        return Some(Answer::Refused(status));
    }
    match read[end + 4..] {
        [0x88, _, high, low, ..] => Some(Answer::Refused(u16::from_be_bytes([high, low]))),
        [0x81, ..] => Some(Answer::Served),
        _ => None,
    }
}

/// What is wrong with how newcomers were treated while there was no room for all.
pub fn problems(answers: &[Answer]) -> Vec<String> {
    let mut wrong = Vec::new();
    let silent: Vec<&Answer> = answers.iter().filter(|a| matches!(a, Answer::Nothing(_))).collect();
    if let Some(Answer::Nothing(why)) = silent.first() {
        let (some, all) = (silent.len(), answers.len());
        wrong.push(format!("{some} of {all} newcomers got no answer: {why}"));
    }
    let clear = |code: &u16| matches!(code, 503 | 4429);
    let odd = answers.iter().find(|a| matches!(a, Answer::Refused(code) if !clear(code)));
    wrong.extend(odd.map(|answer| format!("a newcomer got {answer:?}")));
    if !answers.iter().any(|a| matches!(a, Answer::Refused(_))) {
        wrong.push("no newcomer was refused: this round proves nothing".to_owned());
    }
    wrong
}

/// Panics if bad treatment of newcomers passes, or if good treatment does not.
pub fn self_test() {
    let (yes, no) = (Answer::Served, Answer::Refused(503));
    assert_eq!(problems(&[yes.clone(), no.clone()]), Vec::<String>::new());
    let bad = |answers: &[Answer], expected: &str| {
        let wrong = problems(answers);
        assert!(wrong.len() == 1 && wrong[0].contains(expected), "{expected}: {wrong:?}");
    };
    bad(std::slice::from_ref(&yes), "no newcomer was refused");
    bad(&[], "no newcomer was refused");
    bad(&[yes.clone(), no.clone(), Answer::Nothing("reset".to_owned())], "1 of 3");
    bad(&[yes.clone(), no.clone(), Answer::Refused(500)], "500");

    assert_eq!(understand(b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n"), None);
    assert_eq!(understand(b"HTTP/1.1 503 Service Unavailable\r\n\r\n"), Some(no));
    assert_eq!(understand(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), None);
    assert_eq!(understand(b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x02{}"), Some(yes));
    let told = b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x88\x02\x11\x4d";
    assert_eq!(understand(told), Some(Answer::Refused(4429)));
}
