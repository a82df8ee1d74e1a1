//! A COMMIT whose answer never comes, on a PostgreSQL that cannot be asked what became of it: who
//! wanted a job is told so, and has one when the request is sent again.

use event_gateway::domain::Role;
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use super::commits::{Cut, Proxy};
use super::effects::{OUT_OF_ORDER, WRONG};
use super::home::Home;
use super::process::{Gateway, Setup, token, until};
use super::refusals::refused;
use super::store::{OWED, Place};

const KEY: &str = "sent-until-it-is-answered";

/// Always the same.
fn submission(gateway: &Gateway) -> RequestBuilder {
    let request = reqwest::Client::new().post(format!("{}/api/v1/jobs", gateway.url));
    let request = request.bearer_auth(token("ada", Role::User)).header("idempotency-key", KEY);
    request.json(&json!({ "agent": "external", "dataset_id": "survey/1" }))
}

/// Status and body; `true`: it is what was answered before.
async fn submitted(gateway: &Gateway) -> (u16, bool, Value) {
    let response = submission(gateway).send().await.expect("an answer");
    let (status, before) = (response.status().as_u16(), response.headers().contains_key("idempotent-replay"));
    (status, before, response.json().await.expect("JSON"))
}

/// `done`: whether the server gets that COMMIT.
async fn is_there_once(cut: Cut, done: bool) {
    let home = Home::new();
    let Some(place) = Place::postgres(&home).await else { return };
    let mut url = place.url();
    let server = (url.host_str().expect("a host").to_owned(), url.port().unwrap_or(5432));
    let proxy = Proxy::start(server).await;
    url.set_host(Some(&proxy.address.ip().to_string())).expect("a host");
    url.set_port(Some(proxy.address.port())).expect("a port");
    let environment = [("GATEWAY__STORE__URL", url.as_str())];
    let gateway = Gateway::start_as(&home, Setup { environment: &environment, ..Setup::default() }).await;
    let mut store = place.open(home.path()).await;

    proxy.cut_commit_of(KEY, cut);
    let problem = refused(submission(&gateway), 503, "outcome-unknown").await;
    assert_eq!(problem["retry_safe"], true, "with an Idempotency-Key: {problem}");
    assert!(problem["detail"].as_str().unwrap().contains("Idempotency-Key"), "{problem}");
    assert_eq!(store.count("SELECT count(*) FROM jobs").await, i64::from(done));

    // It takes nothing before it has enrolled again.
    proxy.heal();
    let mut answer = (503, false, Value::Null);
    until("it takes the request", async || {
        answer = submitted(&gateway).await;
        let (status, _, body) = &answer;
        assert!(*status != 503 || body["retry_safe"] == true, "nothing was done: {body}");
        *status != 503
    })
    .await;
    let (status, before, job) = answer;
    assert_eq!((status, before), (201, done), "{job}");
    assert_eq!(submitted(&gateway).await, (201, true, job.clone()), "one key, one answer");
    let stored: Vec<[String; 1]> = store.rows("SELECT {id:id} FROM jobs").await;
    assert_eq!(stored, [[job["id"].as_str().unwrap().replace('-', "")]]);

    // Nor are its events lost, or there twice.
    until("every broker and consumer is done", async || store.count(OWED).await == 0).await;
    assert_eq!(store.count("SELECT count(*) FROM events WHERE event_type = 'job.submitted'").await, 1);
    for (what, query) in WRONG.into_iter().chain([OUT_OF_ORDER]) {
        assert_eq!(store.count(query).await, 0, "{what}");
    }
    assert!(gateway.stop().await);
}

#[tokio::test]
async fn a_job_that_was_committed_unanswered_is_there_once() {
    is_there_once(Cut::AfterAndAway, true).await;
}

#[tokio::test]
async fn a_job_whose_commit_never_arrived_is_there_once() {
    is_there_once(Cut::BeforeAndAway, false).await;
}
