//! `evalpool check`: what it says of a plugin, and which plugins are sound.

use evalpool::Digest;

use crate::{
    init::DRAWS,
    program::{Folder, printed, refusal, run},
    support::{GREET, TEXT, WORDS, wasm},
};

#[test]
fn a_check_says_what_the_plugin_is() {
    let folder = Folder::new();
    let text = printed(&run(&["check", &folder.file("greet.wasm", GREET)]));
    let digest = Digest::of(GREET).to_string();
    for part in [
        &digest,
        "3724 bytes",
        "memory        64 KiB to start; limits.memory is 64 MiB",
        "entry points  greet\n",
        "calls         greet\n",
        "extism:host/env: input_length",
        "exports       memory, greet\n",
        " to compile, ",
        " to initialise\n",
        "snapshot      not possible: it has no initialisers\n",
    ] {
        assert!(text.contains(part), "{text} lacks {part}");
    }
}

#[test]
fn a_check_says_whether_a_plugin_can_be_initialised_once() {
    let folder = Folder::new();
    let words = folder.file("words.wasm", WORDS);
    let check = |options: &[&str]| printed(&run(&[&["check", &words, "--entry", "remember"], options].concat()));
    let says = |text: &str, what: &str| assert!(text.contains(&format!("snapshot      {what}\n")), "{text}");
    says(&check(&[]), "possible: with init = once, instances begin initialised");
    let draws = folder.file("draws.wasm", wasm(DRAWS));
    let shares = "and share for init_refresh the time and the random numbers that they drew";
    says(
        &printed(&run(&["check", &draws])),
        &format!("possible: with init = once, instances begin initialised, {shares}"),
    );
    let other = folder.file("other.wasm", wasm("(module)"));
    says(&check(&["--link", &format!("other={other}")]), "not possible: it is linked with other modules");
    says(&check(&["--engine", "extism", "--trusted"]), "not possible: only the direct engine makes one");
}

#[test]
fn a_plugin_whose_entry_point_has_to_be_named_is_sound_and_run_says_which_there_are() {
    let folder = Folder::new();
    let text = folder.file("text.wasm", TEXT);
    let checked = printed(&run(&["check", &text]));
    let all = "upper, count_vowels, fail, counter";
    assert!(checked.contains(&format!("entry points  {all}\ncalls         it has to be named\n")), "{checked}");
    assert!(printed(&run(&["check", &text, "--entry", "fail"])).contains("calls         fail\n"));
    let line = refusal(&run(&["run", &text]), 1);
    assert_eq!(line, format!("entry_point_missing: the plugin's entry point must be named: it has {all}"));
}
