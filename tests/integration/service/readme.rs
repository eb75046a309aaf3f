//! What the README shows is what happens: its commands are run one after another, as they stand there.
//!
//! Not by a shell: whoever runs the tests need not have `curl`. What is not known here fails, so that no command is there
//! that nobody runs.

use std::{fs, path::Path, time::Duration};

use evalpool::Settings;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::server::{Server, program};

/// The sections with commands, in the order in which a newcomer meets them. `.ci/run` runs those of the first two.
const SECTIONS: [&str; 11] = [
    "Try it",
    "Embed it",
    "Serve it",
    "Serve a plugin that needs a key and a host",
    "Call two entry points",
    "See why a plugin crashed",
    "See what is used",
    "Answer whole requests",
    "Measure your own load",
    "Requests",
    "Watch it",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).unwrap()
}

/// The section of this title, with those below it.
fn section(title: &str) -> String {
    let readme = readme();
    let (_, section) = readme.split_once(&format!("\n## {title}\n")).unwrap_or_else(|| panic!("no section {title:?}"));
    section.split("\n## ").next().unwrap().to_owned()
}

/// The contents of its blocks of this kind.
fn blocks(section: &str, kind: &str) -> Vec<String> {
    let begin = format!("```{kind}\n");
    section.split(&begin).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// What a section has its reader type.
pub(super) fn typed(title: &str) -> String {
    blocks(&section(title), "sh").concat()
}

/// What came of a command.
#[derive(Debug)]
struct Done {
    /// Of HTTP, or the exit code.
    status: u16,
    text: String,
    stderr: String,
}

impl Done {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Runs what a reader would type, in a folder of its own and with a server that has a port of its own.
struct Reader {
    server: Server,
    folder: TempDir,
}

impl Reader {
    /// Runs the commands of a section.
    fn of(title: &str) -> Vec<Done> {
        let mut reader = Self { server: Server::start(&[]), folder: TempDir::new().unwrap() };
        let script = blocks(&section(title), "sh").concat().replace("\\\n", " ");
        let (mut lines, mut done) = (script.lines(), Vec::new());
        while let Some(line) = lines.next() {
            let mut words = words(line);
            if let Some(file) = line.strip_prefix("cat > ").and_then(|rest| rest.strip_suffix(" <<'END'")) {
                let text: Vec<_> = lines.by_ref().take_while(|line| *line != "END").collect();
                fs::write(reader.folder.path().join(file), text.join("\n")).unwrap();
            } else if words[0] == "curl" {
                done.push(reader.curl(&words[1..]));
            } else {
                let settings: Vec<_> =
                    words.iter().map_while(|word| word.strip_prefix("EVALPOOL_")?.split_once('=')).collect();
                let is_serve = words[settings.len()..] == ["cargo", "run", "--release", "--", "serve"];
                if is_serve {
                    reader.server = Server::start(&settings);
                } else {
                    assert_eq!(words[..4], ["cargo", "run", "--release", "--"], "nobody runs {line:?}");
                    done.push(reader.evalpool(&words.split_off(4)));
                }
            }
        }
        done
    }

    fn evalpool(&self, arguments: &[String]) -> Done {
        let here = arguments.iter().map(|word| word.replace("127.0.0.1:8080", &self.server.address));
        let output = program().args(here).current_dir(root()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let status = output.status.code().unwrap().try_into().unwrap();
        Done { status, text: text(output.stdout), stderr: text(output.stderr) }
    }

    /// What `curl` does of it, with the headers that it sends by itself.
    fn curl(&self, arguments: &[String]) -> Done {
        let (mut method, mut path, mut body, mut shows_headers) = (None, None, Vec::new(), false);
        let (mut headers, mut parts) = (vec![("user-agent", "curl/8.5.0"), ("accept", "*/*")], Vec::new());
        let mut arguments = arguments.iter().map(String::as_str);
        while let Some(argument) = arguments.next() {
            match argument {
                "-i" => shows_headers = true,
                "-X" => method = arguments.next(),
                "-H" => headers.push(arguments.next().unwrap().split_once(": ").unwrap()),
                "-d" => body = arguments.next().unwrap().replace("127.0.0.1:8080", &self.server.address).into_bytes(),
                "--data-binary" => body = self.file(arguments.next().unwrap().strip_prefix('@').unwrap()),
                "-F" => {
                    let (name, file) = arguments.next().unwrap().split_once("=@").unwrap();
                    parts.push((name, self.file(file)));
                }
                url => path = Some(url.strip_prefix("http://127.0.0.1:8080").unwrap_or_else(|| panic!("{url}"))),
            }
        }
        let path = path.unwrap();
        let answer = if parts.is_empty() {
            if !headers.iter().any(|(name, _)| *name == "content-type") {
                headers.push(("content-type", "application/x-www-form-urlencoded"));
            }
            let usual = if body.is_empty() { "GET" } else { "POST" };
            self.server.request(method.unwrap_or(usual), path, &headers, &body)
        } else {
            assert_eq!(method, Some("PUT"), "curl would send it by POST");
            let parts: Vec<_> = parts.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
            self.server.put_form(path.strip_prefix("/v1/evaluators/").unwrap(), &parts)
        };
        let lines = answer.headers.iter().filter(|_| shows_headers).map(|(name, value)| format!("{name}: {value}\n"));
        let text = lines.collect::<String>() + answer.text();
        Done { status: answer.status, text, stderr: String::new() }
    }

    /// One that an earlier command wrote, or that is here.
    fn file(&self, path: &str) -> Vec<u8> {
        fs::read(self.folder.path().join(path)).or_else(|_| fs::read(root().join(path))).unwrap()
    }
}

/// A command's words. Of quotes it knows single ones.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut is_quoted) = (Vec::new(), String::new(), false);
    for next in line.chars().chain([' ']) {
        match next {
            '\'' => is_quoted = !is_quoted,
            ' ' if !is_quoted => words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty())),
            next => word.push(next),
        }
    }
    assert!(!is_quoted, "{line:?} ends within quotes");
    words
}

#[track_caller]
fn statuses(done: &[Done], expected: &[u16]) {
    assert_eq!(done.iter().map(|done| done.status).collect::<Vec<_>>(), expected, "{done:#?}");
}

#[test]
fn the_sections_come_in_their_order_and_no_other_has_commands() {
    let readme = readme();
    let with_commands = readme.split("\n## ").skip(1).filter(|section| !blocks(section, "sh").is_empty());
    let titles: Vec<_> = with_commands.map(|section| section.lines().next().unwrap()).collect();
    assert_eq!(titles, SECTIONS);
}

/// CI runs these: the loads by their lines, the example after a comparison with its file.
#[test]
fn the_sections_that_ci_runs_have_no_other_commands() {
    let commands = SECTIONS[..2].iter().flat_map(|title| blocks(&section(title), "sh"));
    let commands: Vec<_> = commands.flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    let others: Vec<_> = commands.iter().filter(|line| !line.starts_with("cargo run --release -- load ")).collect();
    let example = "cargo run --release --no-default-features --features direct --example embed";
    assert_eq!(others, ["cargo test --release", example]);
    let ci = fs::read_to_string(root().join(".ci/run")).unwrap().replace(" --locked", "");
    assert!(others.iter().all(|command| ci.contains(*command)), "not in .ci/run: {others:?}");
}

#[test]
fn serve_it() {
    let done = Reader::of("Serve it");
    statuses(&done, &[200]);
    assert_eq!(done[0].json(), json!({"greeting": "Hello, Ada!"}));
}

#[test]
fn serve_a_plugin_that_needs_a_key_and_a_host() {
    let done = Reader::of("Serve a plugin that needs a key and a host");
    // Uploaded, called, patched; and from the command line.
    statuses(&done, &[201, 200, 200, 0]);
    assert!(done[1].json()["name"] == "greet" && done[3].json()["name"] == "greet", "{done:#?}");
    let (memory, hosts) = (json!(32 << 20), json!(["127.0.0.1"]));
    let spec =
        json!({"config": {"key": null}, "allowed_hosts": hosts, "limits": {"memory": memory, "fuel": 10_000_000}});
    assert_eq!(done[0].json()["spec"], spec);
    let spec = json!({"config": {"key": null}, "allowed_hosts": hosts, "limits": {"memory": memory}});
    assert_eq!(done[2].json()["spec"], spec);
}

#[test]
fn call_two_entry_points() {
    let done = Reader::of("Call two entry points");
    statuses(&done, &[201, 200, 200]);
    let shown = &blocks(&section("Call two entry points"), "text")[0];
    assert_eq!(shown.lines().collect::<Vec<_>>(), [&done[1].text, &done[2].text]);
}

#[test]
fn see_why_a_plugin_crashed() {
    let done = Reader::of("See why a plugin crashed");
    statuses(&done, &[1, 201, 422]);
    assert_eq!(done[0].stderr, blocks(&section("See why a plugin crashed"), "text")[0]);
    assert_eq!(done[2].json()["last_words"]["stderr"], "no such order: 17\n");
}

#[test]
fn see_what_is_used() {
    let done = Reader::of("See what is used");
    statuses(&done, &[201, 200, 200]);
    // All but the figures, which differ.
    let bare = |line: &str| line.replace(|next: char| next.is_ascii_digit() || ".e-".contains(next), "");
    for shown in blocks(&section("See what is used"), "text")[0].lines() {
        assert!(done[1].text.lines().any(|line| bare(line) == bare(shown)), "{shown:?} is not in {done:#?}");
    }
    let mut shown: Value = serde_json::from_str(&blocks(&section("See what is used"), "json")[0]).unwrap();
    let tenant = done[2].json();
    for time in ["guest_seconds", "seconds"] {
        shown["usage"][time] = tenant["usage"][time].clone();
    }
    // The next evaluation's instance may be there already.
    for what in ["instances", "memory_bytes"] {
        shown[what] = tenant[what].clone();
    }
    assert_eq!(tenant, shown);
}

#[test]
fn requests() {
    let done = Reader::of("Requests");
    statuses(&done, &[200]);
    assert_eq!(done[0].json()["info"]["title"], "evalpool");
}

/// A reader has a terminal; `service::top` does it there.
#[test]
fn watch_it() {
    let done = Reader::of("Watch it");
    statuses(&done, &[2]);
    assert!(done[0].stderr.contains("terminal"), "{done:?}");
}

#[test]
fn bounds_are_set_as_it_shows() {
    let bounds = blocks(&section("See what is used"), "toml").remove(0);
    let tenants = Settings::parse("README.md", &bounds, []).unwrap().tenants;
    assert_eq!((tenants.of("acme").runtimes, tenants.of("other").stored_bytes), (Some(8), Some(1 << 30)));
    assert_eq!(tenants.of("acme").cpu_per_second, Some(Duration::from_secs(2)));
}

#[test]
fn answer_whole_requests() {
    let done = Reader::of("Answer whole requests");
    statuses(&done, &[201, 203]);
    let shown = &blocks(&section("Answer whole requests"), "json")[0];
    assert_eq!(done[1].json(), serde_json::from_str::<Value>(shown).unwrap());
}

#[test]
fn measure_your_own_load() {
    let done = Reader::of("Measure your own load");
    statuses(&done, &[0, 0, 0]);
    for (done, shown) in done.iter().zip(["open loop ", "of the flood ", "60 due, "]) {
        assert!(done.text.contains(shown) && done.text.contains("errors        none\n"), "{done:?}");
    }
}
