//! The sockets: they read as fast as one thread can and count updates.

use std::cell::Cell;
use std::io::Write as _;
use std::rc::Rc;
use std::time::Duration;

use crate::socket::{Socket, UPDATE};

pub fn main(args: &[String]) {
    let [address, sockets, auth, join] = args else { panic!("address, sockets, auth, join") };
    let sockets: usize = sockets.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let count = Rc::new(Cell::new(0_u64));
        for _ in 0..sockets {
            let socket = Socket::connect(address, auth, join).await;
            tokio::task::spawn_local(count_updates(socket, count.clone()));
        }
        say("ready");
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            tick.tick().await;
            say(&count.get().to_string());
        }
    });
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // The bench has ended: so does this.
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

async fn count_updates(mut socket: Socket, count: Rc<Cell<u64>>) {
    loop {
        let mut updates = 0;
        socket.read(|frame| updates += u64::from(frame.starts_with(UPDATE))).await;
        count.set(count.get() + updates);
    }
}
