//! A name server for tests.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// A name server on a port of its own: each name has one address, others do not exist.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    socket: UdpSocket,
    asked: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(names: &'static [(&'static str, [u8; 4])]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("its address");
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (heard, own) = (Arc::clone(&asked), socket.try_clone().expect("a descriptor"));
        let thread = std::thread::spawn(move || {
            let mut query = [0; 1500];
            while let Ok((length, from)) = own.recv_from(&mut query) {
                let query = &query[..length];
                // An empty one ends it.
                let Some(name) = name_in(query) else { return };
                let answer = answer(query, names.iter().find(|(own, _)| *own == name));
                heard.lock().expect("no panic").push(name);
                own.send_to(&answer, from).expect("sent");
            }
        });
        Self { address, socket, asked, thread: Some(thread) }
    }

    /// The names that it was asked since the last time.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().expect("no panic"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.socket.send_to(&[], self.address).expect("sent");
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it ends");
        }
    }
}

fn name_in(query: &[u8]) -> Option<String> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        if length == 0 {
            return Some(labels.join("."));
        }
        let label = query.get(at + 1..at + 1 + length)?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += 1 + length;
    }
}

fn answer(query: &[u8], known: Option<&(&str, [u8; 4])>) -> Vec<u8> {
    let name = query[12..].iter().position(|byte| *byte == 0).expect("an end");
    let question = &query[12..12 + name + 5];
    let is_a = question[name + 1..name + 3] == [0, 1];
    let code = if known.is_some() { 0 } else { 3 };
    let address = known.filter(|_| is_a).map(|(_, address)| address);
    let count = u8::from(address.is_some());
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0]);
    answer.extend(question);
    if let Some(address) = address {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4]);
        answer.extend(address);
    }
    answer
}

/// A question for the address of a name, as an app asks.
pub(crate) fn question(name: &str) -> Vec<u8> {
    let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).expect("a short label"));
        question.extend(label.bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    question
}
