use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RsaKeyPair};
use axum::extract::State;
use axum::http::StatusCode;
use jsonwebtoken::jwk::Jwk;
use serde_json::{Value, json};

use super::*;
use crate::config::Config;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn authenticator(set: &[(&str, &str)]) -> Arc<Authenticator> {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::defaults_in(dir.path(), set).unwrap();
    Authenticator::new(&config.auth, dir.path()).unwrap()
}

fn with_secret() -> Arc<Authenticator> {
    authenticator(&[("auth.jwt_secret", SECRET)])
}

fn now() -> i64 {
    Timestamp::now().0 / 1000
}

fn signed(header: &Header, claims: &Value, key: &EncodingKey) -> String {
    jsonwebtoken::encode(header, claims, key).unwrap()
}

fn hs256(claims: &Value) -> String {
    signed(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(SECRET.as_bytes()))
}

async fn refused(auth: &Authenticator, token: &str) -> AuthError {
    auth.authenticate(token).await.expect_err("the token was accepted")
}

#[tokio::test]
async fn an_issued_token_is_accepted_with_its_roles_and_expiry() {
    let auth = with_secret();
    let token = auth.issue_token("ada", &[Role::Operator, Role::User], Duration::from_secs(60)).unwrap();
    let principal = auth.authenticate(&token).await.unwrap();
    assert_eq!(&*principal.user_id, "ada");
    assert_eq!(principal.roles, [Role::Operator, Role::User]);
    let left = principal.expires_at.ms_since(Timestamp::now());
    assert!((57_000..=60_000).contains(&left), "{left} ms left");
}

#[tokio::test]
async fn roles_come_in_several_shapes_and_default_to_user() {
    let auth = with_secret();
    let cases = [
        (json!({}), vec![Role::User]),
        (json!({"roles": []}), vec![Role::User]),
        (json!({"roles": null, "role": 7}), vec![Role::User]),
        (json!({"roles": ["admin", "astronomer"]}), vec![Role::User]),
        (json!({"roles": ["worker"]}), vec![Role::Worker]),
        (json!({"roles": "operator auditor"}), vec![Role::Operator, Role::Auditor]),
        (json!({"role": "auditor"}), vec![Role::Auditor]),
        (json!({"role": ["auditor"], "roles": "auditor worker"}), vec![Role::Auditor, Role::Worker]),
    ];
    for (mut claims, expected) in cases {
        claims["sub"] = json!("ada");
        claims["exp"] = json!(now() + 60);
        let principal = auth.authenticate(&hs256(&claims)).await.unwrap();
        assert_eq!(principal.roles, expected, "{claims}");
    }
}

#[tokio::test]
async fn a_forged_token_is_refused() {
    let auth = with_secret();
    let token = auth.issue_token("ada", &[Role::User], Duration::from_secs(60)).unwrap();
    let other = authenticator(&[("auth.jwt_secret", "another secret of thirty-two bytes")]);
    assert_eq!(refused(&other, &token).await, AuthError::Signature);

    // The claims of another token under this one's signature.
    let operator = hs256(&json!({"sub": "ada", "exp": now() + 60, "roles": ["operator"]}));
    let signature = token.rsplit('.').next().unwrap();
    let forged = format!("{}.{signature}", operator.rsplit_once('.').unwrap().0);
    assert_eq!(refused(&auth, &forged).await, AuthError::Signature);
}

#[tokio::test]
async fn tokens_without_a_signature_are_refused() {
    let auth = with_secret();
    let part = |value: Value| base64_url(value.to_string().as_bytes());
    let claims = part(json!({"sub": "ada", "exp": now() + 60, "roles": ["operator"]}));
    for algorithm in ["none", "None", "NONE", ""] {
        let token = format!("{}.{claims}.", part(json!({"alg": algorithm, "typ": "JWT"})));
        let error = refused(&auth, &token).await;
        assert!(matches!(error, AuthError::Malformed(_) | AuthError::Algorithm), "{algorithm}: {error:?}");
    }
    let unsigned = format!("{}.{claims}.", part(json!({"alg": "HS256", "typ": "JWT"})));
    assert_eq!(refused(&auth, &unsigned).await, AuthError::Signature);
    for junk in ["", "a", "a.b", "a.b.c", "a.b.c.d", "ä.ö.ü", &"x".repeat(100_000)] {
        assert!(matches!(refused(&auth, junk).await, AuthError::Malformed(_)));
    }
}

#[tokio::test]
async fn only_the_configured_algorithm_is_accepted() {
    let auth = with_secret();
    let claims = json!({"sub": "ada", "exp": now() + 60});
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    for algorithm in [Algorithm::HS384, Algorithm::HS512] {
        let token = signed(&Header::new(algorithm), &claims, &key);
        assert_eq!(refused(&auth, &token).await, AuthError::Algorithm);
    }
}

#[tokio::test]
async fn time_is_checked_with_a_small_leeway() {
    let auth = with_secret();
    let at = |exp: Value, nbf: i64| hs256(&json!({"sub": "ada", "exp": exp, "nbf": nbf}));
    assert_eq!(refused(&auth, &at(json!(now() - 10), 0)).await, AuthError::Expired);
    auth.authenticate(&at(json!(now() - 2), 0)).await.unwrap();
    auth.authenticate(&at(json!(now() as f64 + 0.5), 0)).await.unwrap();
    assert_eq!(refused(&auth, &at(json!(now() + 60), now() + 30)).await, AuthError::NotYetValid);
    let endless = hs256(&json!({"sub": "ada"}));
    assert_eq!(refused(&auth, &endless).await, AuthError::MissingClaim("exp".to_owned()));
    assert!(matches!(refused(&auth, &at(json!("soon"), 0)).await, AuthError::Malformed(_)));
}

#[tokio::test]
async fn subjects_are_bounded() {
    let auth = with_secret();
    let subject = |sub: Value| hs256(&json!({"sub": sub, "exp": now() + 60}));
    let nobody = hs256(&json!({"exp": now() + 60}));
    assert_eq!(refused(&auth, &nobody).await, AuthError::MissingClaim("sub".to_owned()));
    assert_eq!(refused(&auth, &subject(json!(""))).await, AuthError::Subject(SubjectError::Empty));
    assert_eq!(refused(&auth, &subject(json!("a\nb"))).await, AuthError::Subject(SubjectError::Control));
    let long = "é".repeat(129);
    assert_eq!(refused(&auth, &subject(json!(long))).await, AuthError::Subject(SubjectError::TooLong));
    auth.authenticate(&subject(json!("é".repeat(128)))).await.unwrap();
    assert!(matches!(refused(&auth, &subject(json!(7))).await, AuthError::Malformed(_)));
    assert!(matches!(auth.issue_token("", &[], Duration::from_secs(1)), Err(IssueError::User(SubjectError::Empty))));
}

#[tokio::test]
async fn issuer_and_audience_are_checked_when_configured() {
    let auth = authenticator(&[
        ("auth.jwt_secret", SECRET),
        ("auth.issuer", "https://login.example.org"),
        ("auth.audience", "gateway,other"),
    ]);
    let own = auth.issue_token("ada", &[], Duration::from_secs(60)).unwrap();
    auth.authenticate(&own).await.unwrap();
    let claims = |iss: &str, aud: Value| hs256(&json!({"sub": "ada", "exp": now() + 60, "iss": iss, "aud": aud}));
    auth.authenticate(&claims("https://login.example.org", json!(["x", "gateway"]))).await.unwrap();
    assert_eq!(refused(&auth, &claims("https://evil.example", json!("gateway"))).await, AuthError::Issuer);
    assert_eq!(refused(&auth, &claims("https://login.example.org", json!("x"))).await, AuthError::Audience);
    let neither = hs256(&json!({"sub": "ada", "exp": now() + 60}));
    assert!(matches!(refused(&auth, &neither).await, AuthError::MissingClaim(_)));
}

#[tokio::test]
async fn the_development_secret_survives_a_restart_and_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("new/data");
    let config = Config::defaults_in(&data, &[]).unwrap();
    let first = Authenticator::new(&config.auth, &data).unwrap();
    assert!(first.is_development());
    let token = first.issue_token("ada", &[Role::User], Duration::from_secs(60)).unwrap();
    let second = Authenticator::new(&config.auth, &data).unwrap();
    second.authenticate(&token).await.unwrap();

    let files: Vec<_> = std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(std::fs::metadata(&files[0]).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::write(&files[0], "short").unwrap();
    assert!(matches!(Authenticator::new(&config.auth, &data), Err(SetupError::DevelopmentSecret { .. })));

    let elsewhere = authenticator(&[]);
    assert_eq!(refused(&elsewhere, &token).await, AuthError::Signature);
}

fn base64_url(bytes: &[u8]) -> String {
    // Any JWT part is base64url: let the library write one.
    let token = jsonwebtoken::encode(
        &Header::new(Algorithm::HS256),
        &serde_json::from_slice::<Value>(bytes).unwrap(),
        &EncodingKey::from_secret(b"x"),
    );
    token.unwrap().split('.').nth(1).unwrap().to_owned()
}

/// A key pair of an identity provider.
struct Signing {
    id: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Signing {
    fn es256(id: &'static str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let der = pair.to_pkcs8v1().unwrap();
        Self { id, algorithm: Algorithm::ES256, key: EncodingKey::from_ec_der(der.as_ref()) }
    }

    fn eddsa(id: &'static str) -> Self {
        let der = Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap();
        Self { id, algorithm: Algorithm::EdDSA, key: EncodingKey::from_ed_der(der.as_ref()) }
    }

    fn rs256(id: &'static str) -> Self {
        let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> =
            RsaKeyPair::generate(KeySize::Rsa2048).unwrap().as_der().unwrap();
        // The RSA key proper (PKCS #1) starts behind the 26 bytes of its PKCS #8 wrapping.
        Self { id, algorithm: Algorithm::RS256, key: EncodingKey::from_rsa_der(&der.as_ref()[26..]) }
    }

    fn jwk(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.id.to_owned());
        serde_json::to_value(jwk).unwrap()
    }

    fn token(&self, user: &str) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.to_owned());
        signed(&header, &json!({"sub": user, "exp": now() + 60, "roles": ["operator"]}), &self.key)
    }

    fn token_without_id(&self, user: &str) -> String {
        signed(&Header::new(self.algorithm), &json!({"sub": user, "exp": now() + 60}), &self.key)
    }
}

/// An identity provider's key document on a loopback port.
#[derive(Clone)]
struct Provider {
    answer: Arc<Mutex<(StatusCode, Value)>>,
    fetches: Arc<AtomicUsize>,
    address: SocketAddr,
}

impl Provider {
    async fn start(keys: Vec<Value>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let provider = Self {
            answer: Arc::new(Mutex::new((StatusCode::OK, json!({ "keys": keys })))),
            fetches: Arc::default(),
            address: listener.local_addr().unwrap(),
        };
        let answer = |State(provider): State<Provider>| async move {
            provider.fetches.fetch_add(1, Ordering::SeqCst);
            let (status, document) = provider.answer.lock().unwrap().clone();
            (status, axum::Json(document))
        };
        let app = axum::Router::new().route("/keys", axum::routing::get(answer)).with_state(provider.clone());
        // Ends with the test's runtime.
        crate::task::spawn("identity provider", async move { axum::serve(listener, app).await });
        provider
    }

    fn set(&self, status: StatusCode, keys: Vec<Value>) {
        *self.answer.lock().unwrap() = (status, json!({ "keys": keys }));
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }

    fn authenticator(&self, set: &[(&str, &str)]) -> Arc<Authenticator> {
        let url = format!("http://{}/keys", self.address);
        let mut all = vec![("auth.jwks_url", url.as_str())];
        all.extend_from_slice(set);
        authenticator(&all)
    }
}

#[tokio::test]
async fn keys_of_every_kind_are_fetched_once_and_verify() {
    let keys = [Signing::rs256("r"), Signing::es256("e"), Signing::eddsa("d")];
    let provider = Provider::start(keys.iter().map(Signing::jwk).collect()).await;
    let auth = provider.authenticator(&[]);
    for key in &keys {
        let principal = auth.authenticate(&key.token("ada")).await.unwrap();
        assert!(principal.has(Role::Operator));
        auth.authenticate(&key.token_without_id("ada")).await.unwrap();
    }
    assert_eq!(provider.fetches(), 1);
}

#[tokio::test]
async fn a_public_key_is_never_a_shared_secret() {
    let key = Signing::rs256("r");
    let jwk = key.jwk();
    let symmetric = json!({"kty": "oct", "kid": "s", "alg": "HS256", "k": base64_url(b"\"secret\"")});
    let provider = Provider::start(vec![jwk.clone(), symmetric]).await;
    let claims = json!({"sub": "mallory", "exp": now() + 60, "roles": ["operator"]});
    // Both without a secret configured and beside one.
    for auth in [provider.authenticator(&[]), provider.authenticator(&[("auth.jwt_secret", SECRET)])] {
        for guess in [jwk["n"].as_str().unwrap().as_bytes(), jwk.to_string().as_bytes(), b"secret", b"\"secret\""] {
            for id in ["r", "s"] {
                let mut header = Header::new(Algorithm::HS256);
                header.kid = Some(id.to_owned());
                let token = signed(&header, &claims, &EncodingKey::from_secret(guess));
                let error = refused(&auth, &token).await;
                assert!(matches!(error, AuthError::Algorithm | AuthError::Signature), "{error:?}");
            }
        }
    }
}

#[tokio::test]
async fn the_right_id_with_the_wrong_key_is_refused() {
    let (real, mut forged) = (Signing::es256("e"), Signing::es256("other"));
    let provider = Provider::start(vec![real.jwk()]).await;
    let auth = provider.authenticator(&[]);
    forged.id = "e";
    assert_eq!(refused(&auth, &forged.token("mallory")).await, AuthError::Signature);
    assert_eq!(refused(&auth, &forged.token_without_id("mallory")).await, AuthError::Signature);
    // A key is for its own algorithm only.
    let mut other_kind = Signing::eddsa("e");
    other_kind.id = "e";
    assert_eq!(refused(&auth, &other_kind.token("mallory")).await, AuthError::UnknownKey);
}

#[tokio::test]
async fn an_unknown_key_id_fetches_again_but_not_more_often_than_the_floor() {
    let (old, new) = (Signing::es256("old"), Signing::es256("new"));
    let provider = Provider::start(vec![old.jwk()]).await;
    let auth = provider.authenticator(&[("auth.jwks_min_interval", "1s")]);
    auth.authenticate(&old.token("ada")).await.unwrap();
    for _ in 0..50 {
        assert_eq!(refused(&auth, &new.token("ada")).await, AuthError::UnknownKey);
    }
    assert_eq!(provider.fetches(), 1);
    provider.set(StatusCode::OK, vec![old.jwk(), new.jwk()]);
    let rotated = async {
        while auth.authenticate(&new.token("ada")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), rotated).await.expect("the new key was never fetched");
    assert_eq!(provider.fetches(), 2);
    auth.authenticate(&old.token("ada")).await.unwrap();
}

#[tokio::test]
async fn many_first_callers_share_one_fetch() {
    let key = Signing::eddsa("d");
    let provider = Provider::start(vec![key.jwk()]).await;
    let auth = provider.authenticator(&[]);
    let token = key.token("ada");
    let all = (0..32).map(|_| auth.authenticate(&token));
    for result in futures_util::future::join_all(all).await {
        result.unwrap();
    }
    assert_eq!(provider.fetches(), 1);
}

#[tokio::test]
async fn an_unreachable_provider_is_temporary_and_known_keys_stay() {
    let key = Signing::es256("e");
    let provider = Provider::start(vec![key.jwk()]).await;
    provider.set(StatusCode::INTERNAL_SERVER_ERROR, vec![]);
    let auth = provider.authenticator(&[]);
    let error = refused(&auth, &key.token("ada")).await;
    assert!(error.is_temporary(), "{error:?}");
    provider.set(StatusCode::OK, vec![key.jwk()]);
    let recovered = async {
        while auth.authenticate(&key.token("ada")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), recovered).await.expect("the keys were never fetched");
    provider.set(StatusCode::INTERNAL_SERVER_ERROR, vec![]);
    auth.authenticate(&key.token("ada")).await.unwrap();
}

#[tokio::test]
async fn a_verified_token_is_forgotten_when_it_expires() {
    let key = Signing::es256("e");
    let provider = Provider::start(vec![key.jwk()]).await;
    let auth = provider.authenticator(&[("auth.leeway", "0s")]);
    let token = signed(&Header::new(Algorithm::ES256), &json!({"sub": "ada", "exp": now() + 2}), &key.key);
    auth.authenticate(&token).await.unwrap();
    auth.authenticate(&token).await.unwrap();
    let expired = async {
        loop {
            match auth.authenticate(&token).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(error) => break error,
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(10), expired).await.expect("it never expired");
    assert_eq!(error, AuthError::Expired);
}

#[tokio::test]
async fn a_withdrawn_key_is_noticed_although_its_tokens_were_verified_before() {
    let (withdrawn, kept) = (Signing::es256("withdrawn"), Signing::es256("kept"));
    let provider = Provider::start(vec![withdrawn.jwk(), kept.jwk()]).await;
    let url = format!("http://{}/keys", provider.address).parse().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::defaults_in(dir.path(), &[("auth.jwks_min_interval", "1s")]).unwrap().auth;
    config.jwks_url = Some(url);
    // Below what the configuration allows, so that the test is quick.
    config.jwks_max_age = Duration::from_millis(1200);
    let auth = Authenticator::new(&config, dir.path()).unwrap();
    let token = withdrawn.token("ada");
    auth.authenticate(&token).await.unwrap();
    provider.set(StatusCode::OK, vec![kept.jwk()]);
    let noticed = async {
        while auth.authenticate(&token).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), noticed).await.expect("the withdrawn key is accepted for ever");
    auth.authenticate(&kept.token("ada")).await.unwrap();
}

#[tokio::test]
async fn a_key_set_may_hold_keys_that_are_of_no_use() {
    let key = Signing::es256("e");
    let useless = [
        json!({"kty": "EC", "crv": "secp256k1", "kid": "k", "x": "AA", "y": "AA"}),
        json!({"kty": "PQ", "kid": "future"}),
        json!({"kty": "RSA", "kid": "enc", "use": "enc", "alg": "RSA-OAEP", "n": "AQAB", "e": "AQAB"}),
        json!("junk"),
    ];
    let keys = useless.into_iter().chain([key.jwk()]).collect();
    let provider = Provider::start(keys).await;
    provider.authenticator(&[]).authenticate(&key.token("ada")).await.unwrap();
}

#[tokio::test]
async fn tokens_are_not_issued_without_a_secret() {
    let provider = Provider::start(vec![]).await;
    let auth = provider.authenticator(&[]);
    assert!(!auth.is_development());
    assert!(matches!(auth.issue_token("ada", &[], Duration::from_secs(1)), Err(IssueError::NoSecret)));
}

/// `cargo test --release --lib auth::tests::cost -- --ignored --nocapture`
#[tokio::test]
#[ignore = "a measurement"]
async fn cost_of_a_token() {
    let auth = with_secret();
    let token = auth.issue_token("ada", &[Role::User], Duration::from_secs(600)).unwrap();
    let rounds = 200_000;
    let start = std::time::Instant::now();
    for _ in 0..rounds {
        std::hint::black_box(auth.authenticate(std::hint::black_box(&token)).await.unwrap());
    }
    println!("HS256: {:?} a token", start.elapsed() / rounds);
    for key in [Signing::rs256("r"), Signing::es256("e"), Signing::eddsa("d")] {
        let provider = Provider::start(vec![key.jwk()]).await;
        let auth = provider.authenticator(&[]);
        let token = key.token("ada");
        let start = std::time::Instant::now();
        for _ in 0..5_000 {
            std::hint::black_box(auth.authenticate(std::hint::black_box(&token)).await.unwrap());
        }
        println!("{:?}: {:?} a token", key.algorithm, start.elapsed() / 5_000);
    }
}
