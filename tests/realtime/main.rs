//! The Socket.IO namespace over real TCP connections, with events committed to a real
//! store and carried by a broadcast queue that the test holds in its hand.

mod broadcast;
mod client;
mod gateway;

mod auth;
mod delivery;
mod join;
mod limits;
mod slow;
