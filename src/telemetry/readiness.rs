//! Readiness: named latches, one a component. The gateway is ready when none is missing that
//! it needs to accept and to show; brokers are shown, but what they miss waits in the store.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use utoipa::ToSchema;

use super::Metrics;
use super::facts::ComponentChanged;
use crate::domain::Timestamp;

/// Where a component stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ComponentState {
    /// Has not worked yet since the gateway started.
    Starting,
    Up,
    /// Works, but not all of it, or without what it would need to outlive the next fault.
    Degraded,
    Down,
}

/// What a component says of itself. The reasons are shown to operators: no secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Up,
    /// It works, but something of it should be looked at.
    Degraded(String),
    Down(String),
}

/// A component as `/health/components` and `/readyz` show it.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Component {
    #[schema(value_type = String, example = "store")]
    pub name: &'static str,
    pub state: ComponentState,
    /// When it came to this state.
    pub since: Timestamp,
    /// Why it is in this state; empty when there is nothing to say.
    pub why: String,
    /// Is the gateway not ready without it? Of the others, work waits in the store.
    pub required: bool,
}

/// All latches of this process. Cheap to share.
#[derive(Debug)]
pub struct Readiness {
    components: Mutex<Vec<Component>>,
    metrics: Arc<Metrics>,
}

impl Readiness {
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { components: Mutex::default(), metrics })
    }

    /// A latch that holds readiness back until [`Latch::up`]. `name` is fixed in the
    /// program; asking for a name again takes over its place.
    pub fn latch(self: &Arc<Self>, name: &'static str) -> Latch {
        self.add(name, true)
    }

    /// A latch that is shown, but does not hold readiness back.
    pub fn optional_latch(self: &Arc<Self>, name: &'static str) -> Latch {
        self.add(name, false)
    }

    fn add(self: &Arc<Self>, name: &'static str, required: bool) -> Latch {
        let starting = Component {
            name,
            state: ComponentState::Starting,
            since: Timestamp::now(),
            why: "not started yet".into(),
            required,
        };
        let mut components = self.components.lock();
        match components.iter_mut().find(|component| component.name == name) {
            Some(component) => *component = starting,
            None => components.push(starting),
        }
        drop(components);
        self.metrics.component_up(name).set(0);
        self.metrics.component_degraded(name).set(0);
        Latch { name, readiness: self.clone() }
    }

    /// Every component, in the order in which they came.
    pub fn components(&self) -> Vec<Component> {
        self.components.lock().clone()
    }

    /// The components that are not up, or not wholly, required or not.
    pub fn missing(&self) -> Vec<Component> {
        self.components.lock().iter().filter(|component| component.state != ComponentState::Up).cloned().collect()
    }

    pub fn is_ready(&self) -> bool {
        self.check().is_ok()
    }

    /// [`Readiness::missing`]: `Err` when one of them holds readiness back.
    pub fn check(&self) -> Result<Vec<Component>, Vec<Component>> {
        let missing = self.missing();
        let holds_back = |component: &Component| component.required && component.state != ComponentState::Degraded;
        if missing.iter().any(holds_back) { Err(missing) } else { Ok(missing) }
    }

    /// Says a change once: in the log, in the metric and here.
    fn change(&self, name: &'static str, state: ComponentState, why: &str) {
        let mut components = self.components.lock();
        let Some(component) = components.iter_mut().find(|component| component.name == name) else { return };
        if component.state == state {
            if component.why != why {
                why.clone_into(&mut component.why);
            }
            return;
        }
        component.state = state;
        component.since = Timestamp::now();
        why.clone_into(&mut component.why);
        drop(components);
        ComponentChanged { component: name, state, why }.record(&self.metrics);
        self.metrics.component_degraded(name).set(i64::from(state == ComponentState::Degraded));
    }
}

/// One component's say in readiness. Keep it as long as the component lives: dropped, it
/// says that the component has stopped.
#[derive(Debug)]
#[must_use = "a dropped latch says that its component has stopped"]
pub struct Latch {
    name: &'static str,
    readiness: Arc<Readiness>,
}

impl Latch {
    /// The component works.
    pub fn up(&self) {
        self.readiness.change(self.name, ComponentState::Up, "");
    }

    pub fn set(&self, standing: &Standing) {
        match standing {
            Standing::Up => self.up(),
            Standing::Degraded(why) => self.readiness.change(self.name, ComponentState::Degraded, why),
            Standing::Down(why) => self.down(why),
        }
    }

    /// The component does not work. `why` is shown to operators: no secrets.
    pub fn down(&self, why: &str) {
        self.readiness.change(self.name, ComponentState::Down, why);
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        self.readiness.change(self.name, ComponentState::Down, "stopped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_latch_is_up_and_as_long_as_it_is() {
        let readiness = Readiness::new(Metrics::new());
        assert!(readiness.is_ready(), "nothing is awaited");
        let (store, brokers) = (readiness.latch("store"), readiness.latch("brokers"));
        assert_eq!(readiness.missing().iter().map(|c| c.name).collect::<Vec<_>>(), ["store", "brokers"]);
        store.up();
        brokers.up();
        assert!(readiness.is_ready());
        brokers.down("no connection");
        let missing = readiness.missing();
        assert_eq!(
            (missing[0].name, missing[0].state, &*missing[0].why),
            ("brokers", ComponentState::Down, "no connection")
        );
        brokers.up();
        drop(store);
        assert_eq!(readiness.missing()[0].why, "stopped");
    }

    #[test]
    fn ready_without_what_is_not_required() {
        let readiness = Readiness::new(Metrics::new());
        let kafka = readiness.optional_latch("kafka");
        assert!(readiness.is_ready());
        kafka.down("no broker answers");
        assert!(readiness.is_ready());
        assert_eq!(readiness.missing()[0].name, "kafka");
        let store = readiness.latch("store");
        store.set(&Standing::Degraded("one of two".into()));
        assert_eq!(readiness.check().unwrap().len(), 2, "it works");
        store.down("none of two");
        assert!(!readiness.is_ready());
    }

    #[test]
    fn since_is_the_time_of_the_change_not_of_the_last_word() {
        let readiness = Readiness::new(Metrics::new());
        let latch = readiness.latch("store");
        latch.down("first");
        readiness.components.lock()[0].since = Timestamp(1);
        latch.down("second");
        let component = &readiness.components()[0];
        assert_eq!((component.since, &*component.why), (Timestamp(1), "second"));
    }

    #[test]
    fn the_metric_follows() {
        let metrics = Metrics::new();
        let readiness = Readiness::new(metrics.clone());
        let latch = readiness.latch("store");
        assert_eq!(metrics.component_up("store").get(), 0);
        latch.up();
        assert_eq!(metrics.component_up("store").get(), 1);
        latch.set(&Standing::Degraded("half of it".into()));
        assert_eq!((metrics.component_up("store").get(), metrics.component_degraded("store").get()), (1, 1));
        latch.down("gone");
        assert_eq!((metrics.component_up("store").get(), metrics.component_degraded("store").get()), (0, 0));
    }
}
