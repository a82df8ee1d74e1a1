//! `token issue`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::Global;
use super::exit::{Failure, Outcome};
use super::output::{Format, print, print_json};
use crate::auth::Authenticator;
use crate::domain::{Role, Timestamp};

#[derive(Subcommand)]
pub enum Token {
    /// Print a token signed with auth.jwt_secret, or with the development secret of data.dir.
    Issue(Issue),
}

#[derive(Args)]
#[command(after_help = "\
Example:
  export GATEWAY_TOKEN=$(event-gateway token issue --user ada --role operator --ttl 1h)")]
pub struct Issue {
    /// Whose token it is.
    #[arg(long)]
    user: String,
    /// What its bearer may do: user, worker, operator or auditor. May be repeated.
    #[arg(long, required = true, value_delimiter = ',')]
    role: Vec<Role>,
    /// How long it is valid, e.g. 30m, 12h, 90d.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,
}

pub fn run(Token::Issue(issue): &Token, global: &Global) -> Outcome {
    let config = global.load()?.config;
    let authenticator = Authenticator::new(&config.auth, &config.data.dir)
        .map_err(|error| Failure::configuration(error.to_string()))?;
    let token = authenticator.issue_token(&issue.user, &issue.role, issue.ttl).map_err(|error| match error {
        crate::auth::IssueError::NoSecret => Failure::configuration(error.to_string()),
        other => Failure::failed(other.to_string()),
    })?;
    match global.output {
        Format::Text => print(&(token + "\n")),
        Format::Json => {
            let ttl = i64::try_from(issue.ttl.as_millis()).unwrap_or(i64::MAX);
            print_json(&serde_json::json!({
                "token": token, "user": issue.user, "roles": issue.role, "expires_at": Timestamp::now().plus_ms(ttl),
            }))
        }
    }
}
