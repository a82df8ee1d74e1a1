//! The tour of the README, executed: each `sh` block is run, and what it prints is compared
//! with the `text` block after it, line by line, `…` standing for anything. A block marked
//! `repeat` only looks, and is asked again until what it shows has arrived.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::fresh;
use super::home::Home;
use super::process::{Gateway, Setup};

const README: &str = include_str!("../../README.md");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// The address that the README names.
const ADDRESS: &str = "127.0.0.1:8080";
/// Ends the output of a block, with its exit code.
const END: &str = "--- end of block, exit code ";
/// Nothing takes longer, on a slow machine that does something else either.
const LIMIT: Duration = Duration::from_secs(180);

/// A step of the tour.
#[derive(Debug)]
struct Step {
    commands: String,
    repeat: bool,
    /// Patterns that its output has in this order.
    shows: Vec<String>,
}

fn steps() -> Vec<Step> {
    let (_, tour) = README.split_once("\n## A tour").expect("the README has a tour");
    let (tour, _) = tour.split_once("\n## ").expect("something follows it");
    let mut steps: Vec<Step> = Vec::new();
    let mut lines = tour.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let block: Vec<&str> = lines.by_ref().take_while(|line| !line.starts_with("```")).collect();
        match info {
            "sh" | "sh repeat" => {
                steps.push(Step { commands: block.join("\n"), repeat: info != "sh", shows: Vec::new() });
            }
            "text" => {
                steps.last_mut().expect("commands come first").shows = block.iter().map(|l| (*l).to_owned()).collect();
            }
            other => panic!("a block of {other:?} in the tour"),
        }
    }
    steps
}

/// Does `line` have the fixed parts of `pattern` in their order, with nothing else but at `…`?
fn matches(pattern: &str, line: &str) -> bool {
    let parts: Vec<&str> = pattern.split('…').collect();
    let (first, last) = (parts[0], parts[parts.len() - 1]);
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    if parts.len() == 1 {
        return rest.is_empty();
    }
    for part in &parts[1..parts.len() - 1] {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// The first pattern that no line has, after the lines of those before it.
fn missing<'a>(shows: &'a [String], output: &str) -> Option<&'a str> {
    let mut lines = output.lines();
    shows.iter().find(|pattern| !lines.any(|line| matches(pattern, line))).map(String::as_str)
}

/// One shell for the whole tour, as its reader has.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Shell {
    fn start(gateway: &Gateway, data_dir: &Path) -> Self {
        let mut child = Command::new("bash")
            .current_dir(ROOT)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", data_dir)
            // Where `make run` has its data, for `token issue`.
            .env("GATEWAY__DATA__DIR", data_dir)
            .env("GATEWAY_URL", &gateway.url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .expect("bash");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, input, output }
    }

    /// Exit code and output.
    async fn run(&mut self, commands: &str) -> (i32, String) {
        // The last line may end without a newline: the mark begins one of its own.
        let block = format!("{commands}\nprintf '\\n{END}%s\\n' \"$?\"\n");
        self.input.write_all(block.as_bytes()).await.expect("the shell reads");
        let mut printed = Vec::new();
        loop {
            let line = tokio::time::timeout(LIMIT, self.output.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("it takes too long:\n{commands}\n{}", printed.join("\n")));
            let line = line.expect("text").expect("the shell goes on");
            match line.strip_prefix(END) {
                Some(code) => return (code.parse().expect("a number"), printed.join("\n")),
                None => printed.push(line),
            }
        }
    }
}

async fn take(step: &Step, shell: &mut Shell, address: &str) {
    let commands = step.commands.replace(ADDRESS, address);
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        let (code, output) = shell.run(&commands).await;
        assert_eq!(code, 0, "{commands}\n{output}");
        let Some(pattern) = missing(&step.shows, &output) else { return };
        assert!(
            step.repeat && tokio::time::Instant::now() < deadline,
            "no {pattern:?} in its place:\n{commands}\n{output}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn the_tour_of_the_readme_works() {
    let steps = steps();
    assert!(steps.len() >= 6 && steps.iter().filter(|step| !step.shows.is_empty()).count() >= 5, "{steps:#?}");
    let home = Home::new();
    // As `make run` starts it: without a secret.
    let environment = [("GATEWAY__AUTH__JWT_SECRET", "")];
    let gateway = Gateway::start_as(&home, Setup { environment: &environment, ..Setup::default() }).await;
    let mut shell = Shell::start(&gateway, home.path());
    // The binary of this test instead of the release build.
    let binaries = Path::new(env!("CARGO_BIN_EXE_event-gateway")).parent().unwrap().to_str().unwrap();
    for mut step in steps {
        step.commands = step.commands.replace("$PWD/target/release", binaries);
        if fresh::is_chosen() {
            // RabbitMQ does not say where it has put a message.
            step.shows.iter_mut().filter(|line| line.contains("broker rabbitmq")).for_each(|line| {
                *line = line.replace(" at …", "");
            });
        }
        take(&step, &mut shell, gateway.address()).await;
    }
    let Shell { mut child, input, output } = shell;
    drop(input);
    output.into_inner().read_to_end(&mut Vec::new()).await.unwrap();
    assert!(child.wait().await.unwrap().success());
    assert!(gateway.stop().await);
}

#[test]
fn the_readme_opens_with_the_two_commands_and_the_screenshot() {
    let opening: Vec<&str> = README.lines().filter(|line| !line.is_empty()).take(4).collect();
    assert!(opening[1].trim().starts_with("make run") && opening[2].trim().starts_with("make test"), "{opening:?}");
    let image = opening[3].split_once("](").and_then(|(_, rest)| rest.strip_suffix(')')).expect("an image");
    assert!(Path::new(ROOT).join(image).is_file(), "{image}");
    // Every file that it points to is there.
    for (_, rest) in README.match_indices("](").map(|(at, _)| README.split_at(at + 2)) {
        let target = rest.split(')').next().unwrap_or_default();
        assert!(target.contains("://") || Path::new(ROOT).join(target).exists(), "{target}");
    }
}

#[test]
fn patterns_stand_for_whole_lines() {
    for (pattern, line, same) in [
        ("a…c", "abc", true),
        ("a…c", "ac", true),
        ("a…c", "abcd", false),
        ("…b…", "abc", true),
        ("abc", "abcd", false),
        ("  lost                0", "  lost                0", true),
        ("  lost                0", "  lost                1", false),
    ] {
        assert_eq!(matches(pattern, line), same, "{pattern} {line}");
    }
}
