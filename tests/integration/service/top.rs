//! `evalpool top` in a real terminal, by tmux: keys are typed, and what the screen shows is awaited.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    letter, readme,
    server::{PATIENCE, Server, eventually, program},
};
use crate::{
    program::{refusal, run},
    support::CRASH,
};

/// A terminal with a shell in which `top` is started.
struct Terminal {
    folder: TempDir,
}

impl Terminal {
    /// `None` where there is no tmux.
    fn start(arguments: &str, columns: u16, lines: u16) -> Option<Self> {
        if Command::new("tmux").arg("-V").output().is_err() {
            println!("skipped: there is no tmux on this machine");
            return None;
        }
        let terminal = Self { folder: TempDir::new().unwrap() };
        let program = program().get_program().to_str().unwrap().to_owned();
        // What the shell shows afterwards tells how the terminal was left.
        let script = format!(
            "echo before; sh -c 'echo $$ > pid; exec {program} {arguments}'; echo ended with $?; stty -a > modes; exec cat"
        );
        let (width, height) = (columns.to_string(), lines.to_string());
        let mut command = terminal.tmux();
        command.current_dir(terminal.folder.path());
        command.args(["-f", "/dev/null", "new-session", "-d", "-x", &width, "-y", &height, &script]);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("EVALPOOL_")) {
            command.env_remove(name);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        Some(terminal)
    }

    fn tmux(&self) -> Command {
        let mut command = Command::new("tmux");
        command.env("LC_ALL", "C.UTF-8").env_remove("TMUX").arg("-u").arg("-S").arg(self.path("socket"));
        command
    }

    fn ask(&self, arguments: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.tmux().args(arguments).output().unwrap();
        assert!(status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn screen(&self) -> String {
        self.ask(&["capture-pane", "-p"])
    }

    /// Keys by their names in tmux.
    fn press(&self, keys: &[&str]) {
        self.ask(&[&["send-keys"], keys].concat());
    }

    fn resize(&self, columns: u16, lines: u16) {
        self.ask(&["resize-window", "-x", &columns.to_string(), "-y", &lines.to_string()]);
    }

    /// Waits until all of these are on the screen.
    fn shows(&self, texts: &[&str]) {
        self.waits_for(&format!("{texts:?}"), |screen| texts.iter().all(|text| screen.contains(text)));
    }

    fn waits_for(&self, what: &str, holds: impl Fn(&str) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen();
            if holds(&screen) {
                return;
            }
            assert!(Instant::now() < end, "not within {PATIENCE:?}: {what}\n{screen}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the end of `top`, after which the terminal is as it was.
    fn ends_with(&self, code: i32) {
        self.shows(&["before", &format!("ended with {code}")]);
        assert_eq!(self.ask(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]).trim(), "0 1");
        let mut modes = String::new();
        eventually("the shell has told the terminal's modes", || {
            modes = fs::read_to_string(self.path("modes")).unwrap_or_default();
            modes.contains("echo ")
        });
        for mode in ["echo", "icanon", "isig", "opost"] {
            assert!(modes.split_whitespace().any(|word| word == mode), "{mode} is not in {modes}");
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux().arg("kill-server").output();
    }
}

fn command(server: &Server) -> String {
    format!("top --url http://{}", server.address)
}

#[test]
fn without_a_terminal_or_with_a_url_that_is_none_it_says_so_in_one_line() {
    let server = Server::start(&[]);
    let url = format!("http://{}", server.address);
    assert_eq!(refusal(&run(&["top", "--url", &url]), 2), "top draws on a terminal, and standard output is none");
    for (url, said) in [("here", "--url here: "), ("ftp://a", "http://"), ("http://ada:lovelace@a", "--token-file")] {
        let line = refusal(&run(&["top", "--url", url]), 2);
        assert!(line.contains(said) && !line.contains("lovelace"), "{line}");
    }
    let line = refusal(&run(&["top", "--token-file", "/nowhere"]), 2);
    assert!(line.starts_with("cannot read the token of /nowhere: "), "{line}");
    let nowhere = program().arg("top").env("EVALPOOL_SERVICE_LISTEN", "127.0.0.1:0").output().unwrap();
    assert!(refusal(&nowhere, 2).ends_with("name the server by --url"));
}

#[test]
#[ignore = "slow lane: needs tmux, which .ci/run installs"]
fn it_shows_a_server_sorts_searches_looks_into_an_evaluator_and_leaves_the_terminal_as_it_was() {
    let server = Server::start(&[]);
    for name in ["acme%2Fprice", "acme%2Ftax", "zeta%2Fprice"] {
        assert_eq!(server.put(name, &letter('a')).status, 201);
    }
    assert_eq!(server.put("crash?entry_point=crash&debug=true", CRASH).status, 201);
    for _ in 0..3 {
        assert_eq!(server.post("zeta%2Fprice", b"").status, 200);
    }
    server.post("crash", b"17").is(422, "guest_trap");
    let Some(terminal) = Terminal::start(&readme_command(&server), 120, 40) else { return };
    terminal.shows(&[
        "evalpool 0.",
        &server.address,
        "live",
        "Evaluations",
        "of 256",
        "acme/price",
        "Evaluators 1–5 of 5",
    ]);
    terminal.press(&["s"]);
    terminal.shows(&["Memory▼"]);
    terminal.press(&["Right", "Right"]);
    // The table is sorted by the server.
    terminal.waits_for("the names in their order", |screen| {
        let at = |name| screen.find(name);
        screen.contains("Name▲") && at("acme/price") < at("acme/tax") && at("acme/tax") < at("crash")
    });
    terminal.press(&["r"]);
    terminal.waits_for("the last name is the first", |screen| screen.find("zeta/price") < screen.find("acme/tax"));
    terminal.press(&["/"]);
    terminal.press(&["-l", "pric"]);
    terminal.shows(&["Search: pric", "Evaluators 1–2 of 2 with \"pric\""]);
    terminal.waits_for("only what was searched for", |screen| {
        !screen.contains("acme/tax") && screen.contains("zeta/price")
    });
    terminal.press(&["Escape"]);
    terminal.shows(&["Evaluators 1–5 of 5"]);
    terminal.press(&["/", "c", "r", "a", "s", "h", "Enter", "Enter"]);
    terminal.shows(&["Last failures", "guest_trap", "no such order: 17", "Spec", "\"debug\": true"]);
    terminal.resize(40, 10);
    terminal.waits_for("ten lines", |screen| screen.lines().count() <= 10 && screen.contains("Esc back"));
    terminal.press(&["Escape"]);
    terminal.shows(&["Calls", "crash", "Enter look", "Runtimes"]);
    terminal.resize(3, 2);
    terminal.waits_for("two lines", |screen| screen.lines().count() <= 2);
    terminal.resize(80, 24);
    terminal.shows(&["with \"crash\"", "Wait time", "t tenant"]);
    terminal.press(&["q"]);
    terminal.ends_with(0);
}

#[test]
#[ignore = "slow lane: needs tmux, which .ci/run installs"]
fn signals_end_it_and_the_terminal_is_as_it_was() {
    let server = Server::start(&[]);
    for signal in ["TERM", "INT", "HUP"] {
        let Some(terminal) = Terminal::start(&command(&server), 80, 24) else { return };
        terminal.shows(&["greet", "live"]);
        let pid = fs::read_to_string(terminal.path("pid")).unwrap();
        assert!(Command::new("kill").args([&format!("-{signal}"), pid.trim()]).status().unwrap().success());
        terminal.ends_with(0);
    }
    let Some(terminal) = Terminal::start(&command(&server), 80, 24) else { return };
    terminal.shows(&["greet", "live"]);
    terminal.press(&["C-c"]);
    terminal.ends_with(0);
}

#[test]
#[ignore = "slow lane: needs tmux, which .ci/run installs"]
fn a_server_that_goes_away_is_awaited_and_shown_again_when_it_is_back() {
    let folder = TempDir::new().unwrap();
    // An address from which nobody connects: so nobody takes the port meanwhile.
    let server = Server::start_on("127.0.0.9:0", folder.path(), &[]);
    let address = server.address.clone();
    let Some(terminal) = Terminal::start(&command(&server), 80, 24) else { return };
    terminal.shows(&["greet", "live"]);
    // It hangs: the connection stays.
    server.signal("STOP");
    terminal.shows(&["away", "it takes too long", "greet"]);
    server.signal("CONT");
    terminal.shows(&["live", "q leave"]);
    drop(server);
    terminal.shows(&["away", "no answer: ", "greet"]);
    let server = Server::start_on(&address, folder.path(), &[]);
    assert_eq!(server.put("newer", &letter('a')).status, 201);
    terminal.shows(&["live", "newer", "q leave"]);
    terminal.press(&["Escape"]);
    terminal.ends_with(0);
}

#[test]
#[ignore = "slow lane: needs tmux, which .ci/run installs"]
fn a_token_is_read_from_its_file_and_again_when_the_server_refuses_it() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (tokens, own) = (path("tokens"), path("own"));
    fs::write(&tokens, "sesame\n").unwrap();
    fs::write(&own, "# ours\nsesame\n").unwrap();
    let server = Server::start(&[("SERVICE_TOKEN_FILE", &tokens)]);
    let Some(terminal) = Terminal::start(&command(&server), 120, 24) else { return };
    terminal.shows(&["401: the server wants a token"]);
    terminal.ends_with(1);
    let terminal = Terminal::start(&format!("{} --token-file {own}", command(&server)), 120, 24).unwrap();
    terminal.shows(&["live", "greet"]);
    fs::write(&tokens, "barley\n").unwrap();
    server.signal("HUP");
    terminal.shows(&["away", "401: the server does not take the token"]);
    fs::write(&own, "barley\n").unwrap();
    terminal.shows(&["live", "q leave"]);
    terminal.press(&["q"]);
    terminal.ends_with(0);
}

#[test]
#[ignore = "slow lane: needs tmux, which .ci/run installs"]
fn a_server_that_is_not_there_or_has_no_page_is_said_where_it_was_typed() {
    let Some(terminal) = Terminal::start("top --url http://127.0.0.9:1", 120, 24) else { return };
    terminal.shows(&["error: http://127.0.0.9:1: no answer: Connection refused"]);
    terminal.ends_with(1);
    let server = Server::start(&[("SERVICE_UI", "false")]);
    let terminal = Terminal::start(&command(&server), 120, 24).unwrap();
    terminal.shows(&["404: the server has no status page", "service.ui = true"]);
    terminal.ends_with(1);
}

/// What the README says to type, for this server.
fn readme_command(server: &Server) -> String {
    let typed = readme::typed("Watch it");
    let arguments = typed.strip_prefix("cargo run --release -- ").unwrap().trim();
    assert!(arguments.starts_with("top ") && arguments.contains("127.0.0.1:8080"), "{typed}");
    arguments.replace("127.0.0.1:8080", &server.address)
}
