use event_gateway::auth::Authenticator;
use event_gateway::config::Config;
use event_gateway::domain::Role;

use crate::program::Program;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

#[tokio::test]
async fn an_issued_token_is_the_only_output_and_is_accepted() {
    let program = Program::new();
    let arguments = ["token", "issue", "--user", "ada", "--role", "operator", "--role", "user", "--ttl", "90m"];
    let ended = program.run_with(&arguments, &[("GATEWAY__AUTH__JWT_SECRET", SECRET)]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    let token = ended.stdout.strip_suffix('\n').unwrap();
    assert!(!token.contains(char::is_whitespace));
    let config = Config::defaults_in(program.dir(), &[("auth.jwt_secret", SECRET)]).unwrap();
    let principal = Authenticator::new(&config.auth, program.dir()).unwrap().authenticate(token).await.unwrap();
    assert_eq!(&*principal.user_id, "ada");
    assert_eq!(principal.roles, [Role::Operator, Role::User]);
}

#[tokio::test]
async fn development_tokens_are_those_of_the_data_directory() {
    let program = Program::new();
    let ended = program.run(&["token", "issue", "--user", "ada", "--role", "user"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    let data = program.dir().join("data");
    let config = Config::defaults_in(&data, &[]).unwrap();
    Authenticator::new(&config.auth, &data).unwrap().authenticate(ended.stdout.trim()).await.unwrap();
}

#[test]
fn what_cannot_be_issued_is_refused() {
    let program = Program::new();
    assert_eq!(program.run(&["token", "issue", "--user", "ada", "--role", "king"]).code, 2);
    assert_eq!(program.run(&["token", "issue", "--user", "ada"]).code, 2);
    assert_eq!(program.run(&["token", "issue", "--user", "", "--role", "user"]).code, 1);
    let jwks = [("GATEWAY__AUTH__JWKS_URL", "https://login.example.org/keys")];
    let ended = program.run_with(&["token", "issue", "--user", "ada", "--role", "user"], &jwks);
    assert_eq!(ended.code, 64);
    assert!(ended.stderr.contains("auth.jwks_url"), "{}", ended.stderr);
}
