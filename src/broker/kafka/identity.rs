//! Which topic a name stands for. One that was deleted and made again has the same name, other
//! records, and offsets that begin anew: only the id that the cluster gave it tells the two apart.
//! librdkafka can ask for it and does not look at it itself when it resumes reading; rdkafka wraps
//! no call that does.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::bindings as c;
use rdkafka::client::Client;
use rdkafka::types::RDKafkaRespErr;

/// The cluster's id of a topic, in base64.
pub(super) type TopicId = Arc<str>;

/// After the request's own time-out, which librdkafka reports itself: what it has asked for has come to
/// its end before the queue for the answer goes.
const GRACE: c_int = 500;
/// Of a cluster that gives topics no ids (before 2.8): it tells nothing apart.
const NONE: &str = "AAAAAAAAAAAAAAAAAAAAAA";

/// How long the broker may take to say them: others wait for it.
const ANSWER: Duration = Duration::from_secs(2);
/// So many questions in a row without an answer are worth a word.
const SILENCE: u32 = 12;

/// The ids that are known.
#[derive(Default)]
pub(super) struct Identities(Mutex<Known>);

#[derive(Default)]
struct Known {
    ids: HashMap<Arc<str>, TopicId>,
    /// Questions without an answer since the last.
    unanswered: u32,
}

impl Identities {
    /// Of those of these topics that have one; as they were when they were last known, if the broker that
    /// has to say so does not answer. Blocks.
    pub fn of<C: ClientContext>(&self, client: &Client<C>, topics: &[Arc<str>]) -> HashMap<Arc<str>, TopicId> {
        let asked = ask(client, topics, ANSWER);
        let mut known = self.0.lock();
        match asked {
            Ok(now) => {
                known.unanswered = 0;
                known.ids.extend(now.clone());
                now
            }
            Err(why) => {
                known.unanswered += 1;
                if known.unanswered == SILENCE {
                    tracing::warn!(why, "whether Kafka's topics are still the same cannot be known");
                }
                let of = |topic: &Arc<str>| Some((topic.clone(), known.ids.get(topic)?.clone()));
                topics.iter().filter_map(of).collect()
            }
        }
    }
}

/// The ids of those of these topics that have one; blocks.
///
/// # Errors
/// No answer within `limit`, which the one broker that is asked has to give; what the client says
/// about it, and about names that it does not take.
fn ask<C: ClientContext>(
    client: &Client<C>,
    topics: &[Arc<str>],
    limit: Duration,
) -> Result<HashMap<Arc<str>, TopicId>, String> {
    if topics.is_empty() {
        return Ok(HashMap::new());
    }
    let names: Result<Vec<CString>, _> = topics.iter().map(|topic| CString::new(&**topic)).collect();
    let names = names.map_err(|error| error.to_string())?;
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let limit = c_int::try_from(limit.as_millis()).unwrap_or(c_int::MAX - GRACE);
    let client = client.native_ptr();
    // SAFETY: the client outlives this function, and librdkafka copies names and options. What it hands
    // out is owned here, each with the function that destroys it, in the reverse of the order in which
    // it was made, and read while the event it belongs to is there and has no error.
    unsafe {
        let queue = Owned::new(c::rd_kafka_queue_new(client), c::rd_kafka_queue_destroy)?;
        let operation = c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let options = Owned::new(c::rd_kafka_AdminOptions_new(client, operation), c::rd_kafka_AdminOptions_destroy)?;
        c::rd_kafka_AdminOptions_set_request_timeout(options.0, limit, ptr::null_mut(), 0);
        let collection = c::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let collection = Owned::new(collection, c::rd_kafka_TopicCollection_destroy)?;
        c::rd_kafka_DescribeTopics(client, collection.0, options.0, queue.0);
        let event = Owned::new(c::rd_kafka_queue_poll(queue.0, limit + GRACE), c::rd_kafka_event_destroy)?;
        if c::rd_kafka_event_error(event.0) != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(text(c::rd_kafka_event_error_string(event.0)).to_string());
        }
        let result = c::rd_kafka_event_DescribeTopics_result(event.0);
        if result.is_null() {
            return Err("topics are not described".to_owned());
        }
        let mut count = 0;
        let described = c::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        let described = (0..count).map(|index| *described.add(index));
        // Null where the broker left one out.
        let there = described.filter(|topic| {
            !topic.is_null() && {
                let error = c::rd_kafka_TopicDescription_error(*topic);
                c::rd_kafka_error_code(error) == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
            }
        });
        let named = there.map(|topic| {
            let id = c::rd_kafka_TopicDescription_topic_id(topic);
            (text(c::rd_kafka_TopicDescription_name(topic)), text(c::rd_kafka_Uuid_base64str(id)))
        });
        Ok(named.filter(|(_, id)| **id != *NONE).collect())
    }
}

/// A text of librdkafka's.
///
/// # Safety
/// Null, or a C string that lives until this returns.
unsafe fn text(from: *const c_char) -> Arc<str> {
    if from.is_null() {
        return Arc::default();
    }
    // SAFETY: not null, and a C string as the caller says.
    unsafe { CStr::from_ptr(from) }.to_string_lossy().into()
}

/// Something of librdkafka's that is destroyed when it goes.
struct Owned<T>(*mut T, unsafe extern "C" fn(*mut T));

impl<T> Owned<T> {
    /// # Safety
    /// Nobody else owns it, and `destroy` is the function that librdkafka has for it.
    unsafe fn new(made: *mut T, destroy: unsafe extern "C" fn(*mut T)) -> Result<Self, String> {
        if made.is_null() { Err("no answer in time".to_owned()) } else { Ok(Self(made, destroy)) }
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: not null, and the rest as `new` was told.
        unsafe { (self.1)(self.0) }
    }
}
