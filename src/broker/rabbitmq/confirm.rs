//! Publishes a window on one channel and settles it as a whole.
//!
//! With pipelined mandatory messages lapin attaches a return to whichever confirm comes
//! next, so that a returned message may look acknowledged. Once every message of a window
//! is confirmed, all its returns have come, too, and are matched by message id.

use std::collections::HashMap;

use bytes::Bytes;
use futures_util::future::try_join_all;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};

/// A message ready to go.
pub(super) struct Ready {
    pub exchange: ShortString,
    pub key: ShortString,
    pub properties: BasicProperties,
    pub body: Bytes,
    /// Its `message_id`.
    pub id: String,
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    Confirmed,
    /// No queue took it.
    Returned(String),
    /// A queue refused it: it is full.
    Refused,
}

/// One result per message, in order.
///
/// # Errors
/// The channel broke before all were confirmed; any of them may have arrived.
pub(super) async fn publish(channel: &Channel, window: &[Ready]) -> lapin::Result<Vec<Settled>> {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let sent = try_join_all(window.iter().map(|message| {
        let (exchange, key) = (message.exchange.clone(), message.key.clone());
        channel.basic_publish(exchange, key, options, &message.body, message.properties.clone())
    }))
    .await?;
    let confirmations = try_join_all(sent).await?;
    let mut refused = Vec::with_capacity(window.len());
    let mut returned = HashMap::new();
    for confirmation in confirmations {
        refused.push(confirmation.is_nack());
        if let Some(message) = confirmation_return(confirmation) {
            returned.insert(message.0, message.1);
        }
    }
    Ok(reconcile(window.iter().map(|message| message.id.as_str()), &refused, &returned))
}

/// The id of the message that came back with a confirm, and why it did.
fn confirmation_return(confirmation: Confirmation) -> Option<(String, String)> {
    let message = confirmation.take_message()?;
    let id = message.delivery.properties.message_id().as_ref()?.to_string();
    Some((id, message.reply_text.to_string()))
}

fn reconcile<'a>(
    ids: impl Iterator<Item = &'a str>,
    refused: &[bool],
    returned: &HashMap<String, String>,
) -> Vec<Settled> {
    ids.zip(refused)
        .map(|(id, refused)| match returned.get(id) {
            Some(why) => Settled::Returned(why.clone()),
            None if *refused => Settled::Refused,
            None => Settled::Confirmed,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_return_belongs_to_its_id_whatever_confirm_it_came_with() {
        let returned = HashMap::from([("b".to_owned(), "NO_ROUTE".to_owned())]);
        let settled = reconcile(["a", "b", "c"].into_iter(), &[false, false, true], &returned);
        assert_eq!(settled, [Settled::Confirmed, Settled::Returned("NO_ROUTE".into()), Settled::Refused]);
    }
}
