//! The publishing side: windows, confirmed message by message.

use std::sync::Arc;

use async_trait::async_trait;
use lapin::Channel;
use lapin::options::ConfirmSelectOptions;
use lapin::types::ShortString;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Shared;
use super::confirm::{self, Ready, Settled};
use super::connection::Session;
use super::message;
use super::topology::{self, Topology};
use crate::broker::{Outgoing, Position, PublishError, Publisher};
use crate::domain::Broker;

/// Idle channels kept; each serves one window at a time.
const MAX_IDLE: usize = 16;

pub(super) struct RabbitPublisher {
    shared: Arc<Shared>,
    /// With the generation of their connection.
    idle: Mutex<Vec<(u64, Channel)>>,
}

/// A whole window went wrong: nothing is known about any of its messages.
struct Unsettled(String);

#[async_trait]
impl Publisher for RabbitPublisher {
    fn broker(&self) -> Broker {
        Broker::Rabbitmq
    }

    async fn publish(&self, window: &[Outgoing]) -> Vec<Result<Position, PublishError>> {
        let mut results: Vec<Option<Result<Position, PublishError>>> = vec![None; window.len()];
        let mut ready = Vec::with_capacity(window.len());
        let mut places = Vec::with_capacity(window.len());
        for (place, outgoing) in window.iter().enumerate() {
            match self.ready(outgoing) {
                Ok(message) => {
                    ready.push(message);
                    places.push(place);
                }
                Err(why) => results[place] = Some(Err(PublishError::Permanent(why))),
            }
        }
        let settled = if ready.is_empty() { Ok(Vec::new()) } else { self.settle(ready, window, &places).await };
        match settled {
            Ok(settled) => {
                for (place, settled) in places.into_iter().zip(settled) {
                    results[place] = Some(result(&self.shared.topology, &window[place], settled));
                }
            }
            Err(Unsettled(why)) => {
                for place in places {
                    results[place] = Some(Err(PublishError::Down(why.clone())));
                }
            }
        }
        let unknown = || Err(PublishError::Down("not settled".to_owned()));
        results.into_iter().map(|result| result.unwrap_or_else(unknown)).collect()
    }
}

fn result(topology: &Topology, outgoing: &Outgoing, settled: Settled) -> Result<Position, PublishError> {
    let route = &outgoing.route;
    match settled {
        Settled::Confirmed => Ok(Position { log: route.target.clone(), partition: 0, offset: None }),
        Settled::Returned(_) if route.optional => Err(PublishError::NoQueueBound),
        Settled::Returned(why) if topology.takes(&route.target, &route.key) => Err(PublishError::Transient(format!(
            "somebody unbinds the queues of exchange {} as soon as they are bound, or they cannot be declared: \
             readiness says why ({why})",
            route.target
        ))),
        Settled::Returned(why) => Err(PublishError::Permanent(format!(
            "no queue is bound to exchange {} for the key {} ({why}); given up: bind one before such events are \
             published, or make the route optional",
            route.target, route.key
        ))),
        Settled::Refused => {
            Err(PublishError::Transient(format!("a queue behind exchange {} is full and refuses more", route.target)))
        }
    }
}

impl RabbitPublisher {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, idle: Mutex::default() }
    }

    /// The message to send, or why it can never be sent. What the server would refuse by
    /// closing the channel must not get there: it would take its window along.
    fn ready(&self, outgoing: &Outgoing) -> Result<Ready, String> {
        let Outgoing { event, route } = outgoing;
        let body = &event.payload.json;
        let limit = self.shared.max_message;
        if body.len() > limit {
            return Err(format!("its body has {} bytes; rabbitmq.max_message allows {limit}", body.len()));
        }
        if !self.shared.topology.has_exchange(&route.target) {
            return Err(format!("there is no exchange {}; the catalogue declares exchanges", route.target));
        }
        let short =
            |text: &str| ShortString::try_new(text).map_err(|_| format!("{text:?} is longer than AMQP's 255 bytes"));
        Ok(Ready {
            exchange: short(&route.target)?,
            key: short(&route.key)?,
            properties: message::properties(&event.headers()),
            body: body.clone(),
            id: event.event_id.to_string(),
        })
    }

    /// Settles all, within the timeout. What no queue took is sent again after the topology
    /// has been declared anew: somebody may have deleted a binding.
    async fn settle(
        &self,
        ready: Vec<Ready>,
        window: &[Outgoing],
        places: &[usize],
    ) -> Result<Vec<Settled>, Unsettled> {
        let deadline = Instant::now() + self.shared.confirm_timeout;
        let mut settled = self.attempt(&ready, deadline).await?;
        let again: Vec<usize> = (0..settled.len())
            .filter(|index| matches!(settled[*index], Settled::Returned(_)) && !window[places[*index]].route.optional)
            .collect();
        if again.is_empty() {
            return Ok(settled);
        }
        self.declare_again(deadline).await?;
        let mut ready: Vec<Option<Ready>> = ready.into_iter().map(Some).collect();
        let messages: Vec<Ready> = again.iter().filter_map(|index| ready[*index].take()).collect();
        for (index, outcome) in again.into_iter().zip(self.attempt(&messages, deadline).await?) {
            settled[index] = outcome;
        }
        Ok(settled)
    }

    async fn attempt(&self, messages: &[Ready], deadline: Instant) -> Result<Vec<Settled>, Unsettled> {
        let session = self.shared.publishing.session().map_err(Unsettled)?;
        let publishing = async {
            let channel = self.channel(&session).await?;
            let settled = confirm::publish(&channel, messages).await?;
            Ok::<_, lapin::Error>((channel, settled))
        };
        match tokio::time::timeout_at(deadline, publishing).await {
            Ok(Ok((channel, settled))) => {
                self.shared.health.settled(messages, &settled);
                // RabbitMQ 3.10 goes on refusing on a channel that met a queue without a leader.
                if !settled.contains(&Settled::Refused) {
                    self.give_back(&session, channel);
                }
                Ok(settled)
            }
            Ok(Err(error)) => {
                if session.connection.status().connected() {
                    // A deleted exchange closes the channel.
                    self.declare_again(deadline).await?;
                }
                Err(Unsettled(error.to_string()))
            }
            Err(_) => {
                let why = format!("no confirm within {:?}", self.shared.confirm_timeout);
                // A blocked connection is fine again when the server has recovered.
                if !session.connection.status().blocked() {
                    session.give_up(why.clone());
                }
                Err(Unsettled(why))
            }
        }
    }

    async fn declare_again(&self, deadline: Instant) -> Result<(), Unsettled> {
        let session = self.shared.publishing.session().map_err(Unsettled)?;
        let declaring = topology::declare(&session.connection, &self.shared.topology, session.server);
        match tokio::time::timeout_at(deadline, declaring).await {
            Ok(Ok(_)) => {
                tracing::info!("declared RabbitMQ's topology again: something of it was gone");
                Ok(())
            }
            Ok(Err(error)) => Err(Unsettled(error.to_string())),
            Err(_) => Err(Unsettled("declaring the topology again took too long".to_owned())),
        }
    }

    async fn channel(&self, session: &Session) -> lapin::Result<Channel> {
        let idle = {
            let mut idle = self.idle.lock();
            idle.retain(|(generation, channel)| *generation == session.generation && channel.status().connected());
            idle.pop()
        };
        if let Some((_, channel)) = idle {
            return Ok(channel);
        }
        let channel = session.connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    fn give_back(&self, session: &Session, channel: Channel) {
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push((session.generation, channel));
        }
    }
}
