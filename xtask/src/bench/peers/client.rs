//! The load on the web service: a bounded number of requests over a few connections to this machine.
//!
//! Apart from the programs and not in Python, so that no tool traces it. Each connection waits for its answer before it asks
//! again, so a slower service is asked less often.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    ops::Range,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};

const CONNECTIONS: usize = 4;
const REQUESTS: usize = 5000;
/// Of each connection, before the clocks start.
const WARM_UP: usize = 10_000;
/// Far above what any answer takes.
const PATIENCE: Duration = Duration::from_mins(1);

/// Asks what a service is asked before its clocks start: until its store is full and its memory does not grow any more.
pub(super) fn warm_up(port: u16) -> Result<()> {
    ask(port, 0..WARM_UP, &AtomicBool::new(false))?;
    Ok(())
}

/// Asks all that there is to ask, so many times, or until it is over, which it is when this is through. The share that was asked.
pub(super) fn load(port: u16, times: usize, is_over: &AtomicBool) -> Result<f64> {
    let all = times * REQUESTS;
    let asked = ask(port, WARM_UP..WARM_UP + all, is_over)?;
    is_over.store(true, Relaxed);
    Ok(asked as f64 / (CONNECTIONS * all) as f64)
}

/// Asks so much on each connection, or until it is over; how much was asked.
fn ask(port: u16, turns: Range<usize>, is_over: &AtomicBool) -> Result<usize> {
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|number| {
                let turns = turns.clone();
                scope.spawn(move || client(port, number, turns, is_over))
            })
            .collect();
        let mut asked = 0;
        for client in clients {
            asked += client.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        Ok(asked)
    })
}

fn client(port: u16, number: usize, turns: Range<usize>, is_over: &AtomicBool) -> Result<usize> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("cannot reach the service")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut answers = BufReader::new(stream);
    let (first, all) = (turns.start, turns.len());
    for turn in turns {
        if is_over.load(Relaxed) {
            return Ok(turn - first);
        }
        let seed = turn * CONNECTIONS + number;
        let request = match turn % 4 {
            0 | 1 => post(seed),
            2 => get(&format!("/search/tag{}", seed % 40)),
            _ => get(&format!("/items/{}", 1 + seed / 3)),
        };
        answers.get_mut().write_all(request.as_bytes())?;
        read_answer(&mut answers)?;
    }
    Ok(all)
}

fn post(seed: usize) -> String {
    let body = format!(
        "{{\"name\": \"item {seed}\", \"tags\": [\"tag{}\", \"tag{}\", \"all\"], \"price\": {}.5}}",
        seed % 40,
        40 + seed % 7,
        seed * 7919 % 1000
    );
    format!(
        "POST /items HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n")
}

fn read_answer(answers: &mut BufReader<TcpStream>) -> Result<()> {
    let mut length = None;
    loop {
        let mut line = String::new();
        if answers.read_line(&mut line)? == 0 {
            bail!("the service closed a connection");
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = Some(value.parse::<usize>().context("no length")?);
        }
    }
    let mut body = vec![0; length.context("an answer without a length")?];
    answers.read_exact(&mut body)?;
    Ok(())
}
