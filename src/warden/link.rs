//! The task in the daemon that owns the socket to the warden: passes orders and answers, beats while a hold lives, and
//! finds out when the warden is lost.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

use super::{
    Event, Reason,
    marker::Marker,
    protocol::{self, Answer, Ask, Heard, Word},
    pulse::{Listener, TICK},
    rcu,
};
use crate::sys::{clock, family::Child};

/// How long a killed warden may take to die before it is left to die alone.
const DIE: Duration = Duration::from_secs(1);

/// One order on its way to the warden.
pub(super) struct Packet {
    pub ask: Ask,
    pub tail: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

pub(super) type Answers = mpsc::UnboundedReceiver<(Answer, Vec<OwnedFd>)>;

pub(super) struct Link {
    pub socket: AsyncFd<OwnedFd>,
    pub warden: Child,
    pub died: AsyncFd<OwnedFd>,
    pub marker: Arc<Marker>,
    pub orders: mpsc::UnboundedReceiver<Packet>,
    pub answers: mpsc::UnboundedSender<(Answer, Vec<OwnedFd>)>,
    pub events: mpsc::UnboundedSender<Event>,
    /// does a hold live?
    pub beating: watch::Receiver<bool>,
}

enum End {
    /// the warden is dead or does not answer
    Lost,
    /// nobody holds a `Warden` any more
    Dropped,
}

impl Link {
    pub(super) async fn run(mut self) {
        match self.talk().await {
            End::Dropped => {
                drop(self.socket);
                let _ = self.died.readable().await;
                self.warden.reap();
            }
            End::Lost => {
                self.warden.kill();
                if timeout(DIE, self.died.readable()).await.is_ok() {
                    self.warden.reap();
                }
                if *self.beating.borrow() {
                    self.marker.let_go_because(Reason::WardenLost);
                }
                let _ = rcu::restore(Path::new("/"), &self.marker);
                let _ = self.events.send(Event::WardenLost);
                // every question now ends with `Lost`
                drop((self.answers, self.socket));
                // guardians that outlive the warden look at these beats, until the hold is ended
                beat_on(&self.marker, self.orders, self.beating).await;
                self.warden.reap();
            }
        }
    }

    async fn talk(&mut self) -> End {
        let mut queue: VecDeque<Packet> = VecDeque::new();
        let mut listener = Listener::new(clock::monotonic(), 0);
        let mut beating = *self.beating.borrow_and_update();
        loop {
            tokio::select! {
                biased;
                heard = self.socket.async_io(Interest::READABLE, hear) => match heard {
                    Ok((Answer { word: Word::Event(event), .. }, _)) => drop(self.events.send(event.into())),
                    Ok(answer) => drop(self.answers.send(answer)),
                    Err(_) => return End::Lost,
                },
                _ = self.died.readable() => return End::Lost,
                order = self.orders.recv() => match order {
                    Some(order) => queue.push_back(order),
                    None => return End::Dropped,
                },
                sent = self.socket.async_io(Interest::WRITABLE, |socket| send(socket, queue.front())), if !queue.is_empty() => {
                    if sent.is_err() {
                        return End::Lost;
                    }
                    queue.pop_front();
                }
                changed = self.beating.changed() => {
                    if changed.is_err() {
                        return End::Dropped;
                    }
                    beating = *self.beating.borrow_and_update();
                    listener = Listener::new(clock::monotonic(), self.marker.warden_pulse().load(SeqCst));
                    self.marker.daemon_pulse().fetch_add(1, SeqCst);
                }
                () = sleep(listener.next().saturating_sub(clock::monotonic())), if beating => {
                    self.marker.daemon_pulse().fetch_add(1, SeqCst);
                    if listener.lost(clock::monotonic(), self.marker.warden_pulse().load(SeqCst)) {
                        return End::Lost;
                    }
                }
            }
        }
    }
}

fn hear(socket: &OwnedFd) -> io::Result<(Answer, Vec<OwnedFd>)> {
    match protocol::receive(socket) {
        Heard::Message { head, fds, .. } => Ok((head, fds)),
        Heard::Nothing => Err(io::ErrorKind::WouldBlock.into()),
        Heard::End => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

fn send(socket: &OwnedFd, packet: Option<&Packet>) -> io::Result<()> {
    let Some(packet) = packet else { return Ok(()) };
    let fds: Vec<_> = packet.fds.iter().map(AsFd::as_fd).collect();
    protocol::send(socket, &packet.ask, &[&packet.tail], &fds)
}

async fn beat_on(marker: &Marker, mut orders: mpsc::UnboundedReceiver<Packet>, mut beating: watch::Receiver<bool>) {
    while *beating.borrow_and_update() {
        tokio::select! {
            () = sleep(TICK) => drop(marker.daemon_pulse().fetch_add(1, SeqCst)),
            changed = beating.changed() => if changed.is_err() { return },
            order = orders.recv() => if order.is_none() { return },
        }
    }
}
