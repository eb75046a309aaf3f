//! What workers say and how they end, by processes that say what they are told to.

use std::process::Command;

use super::{
    protocol::{Reply, hear, say},
    worker::MOST_CODE,
    *,
};
use crate::engine::Ended;

const LAYOUT: MemoryLayout = MemoryLayout { reservation: 1, guard: 2 };
const SUBJECT: Subject<'_> = Subject { wasm: b"wasm", state: b"state" };

fn terms() -> Terms {
    Terms::within(Duration::from_secs(10))
}

/// A process that says this at once, reads whatever it is told, and says no more.
fn says(replies: &[Reply], then: &[u8]) -> Worker {
    let mut said = Vec::new();
    for reply in replies {
        say(&mut said, reply).unwrap();
    }
    let escaped: Vec<_> = said.iter().chain(then).map(|byte| format!("\\0{byte:o}")).collect();
    let script = "printf %b \"$0\"; exec cat > /dev/null";
    Worker::spawn(Command::new("sh").args(["-c", script, &escaped.concat()])).unwrap()
}

fn ready() -> Reply {
    Reply::Ready(Setup::new(LAYOUT))
}

fn code(size: u64) -> Reply {
    Reply::Code { engine: terms().engine, size, resident: 77 }
}

/// A worker that compiles one module.
fn compiles() -> Worker {
    says(&[ready(), Reply::Begun, code(4)], &with_digest(b"code"))
}

fn with_digest(code: &[u8]) -> Vec<u8> {
    [&Sealed::digest(code)[..], code].concat()
}

fn workers() -> Workers {
    Workers::new(&CompileWorkers::Program("/nothing/here".into()), 1 << 30, LAYOUT).unwrap()
}

fn ended(workers: &Workers, how: Ended) -> u64 {
    workers.counts().ended[how as usize]
}

#[test]
fn a_worker_is_of_this_build_or_none() {
    let setup = Setup::new(LAYOUT);
    let greet = |replies: &[Reply], then: &[u8]| says(replies, then).greet(&setup);
    assert!(greet(&[ready()], b"").is_ok());
    let other = Reply::Ready(Setup::new(MemoryLayout { guard: 3, ..LAYOUT }));
    assert!(matches!(greet(&[other], b""), Err(Failed::Unfit(text)) if text.contains("another build")));
    assert!(matches!(greet(&[Reply::Begun], b""), Err(Failed::Unfit(text)) if text.contains("Begun")));
    assert!(matches!(greet(&[], b"hello\n"), Err(Failed::Unfit(text)) if text.contains("does not speak as one")));
    assert!(matches!(greet(&[], b""), Err(Failed::Gone { begun: false })));
}

#[test]
fn what_a_worker_answers_is_taken_if_it_is_what_was_ordered() {
    let order = Order::new(terms(), SUBJECT);
    let room = |wanted: Wanted| if wanted.loaded > 1 << 20 { Err(Error::Cancelled) } else { Ok(wanted.loaded) };
    let answer = |mut worker: Worker| {
        let answer = worker.compile(&order, SUBJECT, terms(), &Stop::default(), room);
        assert_eq!(worker.builds, 1);
        answer.map(|(code, room)| (code.len(), room, worker.resident))
    };
    let invalid = || Reply::Invalid { reason: "reason".into(), chain: "chain".into() };
    let taken = answer(says(&[Reply::Begun, code(4)], &with_digest(b"code")));
    assert_eq!(taken.unwrap(), (36, 36, 77));
    let fails = |replies: &[Reply], then: &[u8]| answer(says(replies, then)).unwrap_err();
    let unfit = |replies: &[Reply], then: &[u8]| match fails(replies, then) {
        Failed::Unfit(text) => text,
        other => panic!("{other:?}"),
    };
    assert!(matches!(fails(&[], b""), Failed::Gone { begun: false }));
    assert!(matches!(fails(&[Reply::Begun], b""), Failed::Gone { begun: true }));
    assert!(matches!(fails(&[Reply::Begun, code(4)], b"too short"), Failed::Gone { begun: true }));
    assert!(matches!(fails(&[Reply::Begun, code(MOST_CODE)], b""), Failed::NoRoom(Error::Cancelled)));
    assert!(matches!(fails(&[Reply::Begun, code(MOST_CODE + 1)], b""), Failed::Large(size) if size == MOST_CODE + 1));
    assert!(matches!(fails(&[Reply::Begun, invalid()], b""), Failed::Invalid { .. }));
    assert!(
        matches!(fails(&[Reply::Begun, Reply::Panicked("bug".into())], b""), Failed::Panicked(text) if text == "bug")
    );
    assert!(matches!(fails(&[Reply::Begun, Reply::Memory], b""), Failed::Memory));
    assert!(unfit(&[invalid()], b"").contains("Invalid"));
    assert!(unfit(&[Reply::Begun, Reply::Begun], b"").contains("Begun"));
    let of_another = Reply::Code { engine: 1, size: 4, resident: 0 };
    assert!(unfit(&[Reply::Begun, of_another], &with_digest(b"code")).contains("another version"));
    assert!(unfit(&[Reply::Begun, code(4)], &with_digest(b"fives")).contains("digest"));
}

#[test]
fn a_worker_that_failed_is_counted_by_how_it_ended() {
    let end = |failed, why| says(&[], b"").end(failed, why);
    assert!(matches!(end(Failed::Memory, Some(Why::Timeout)), (Ended::Timeout, Failed::Stopped)));
    assert!(matches!(end(Failed::Memory, Some(Why::Unwanted)), (Ended::Killed, Failed::Stopped)));
    assert!(matches!(end(Failed::Memory, None), (Ended::Memory, Failed::Memory)));
    assert!(matches!(end(Failed::Panicked("bug".into()), None), (Ended::Crashed, Failed::Panicked(_))));
    assert!(matches!(end(Failed::Large(1), None), (Ended::Done, Failed::Large(1))));
}

type Makes<'a> = &'a dyn Fn() -> Worker;

#[test]
fn a_module_is_tried_once_more_when_its_worker_dies_of_it_and_another_that_was_dead_counts_for_nothing() {
    let dead = || {
        let mut dead = says(&[], b"");
        dead.builds = 1;
        dead
    };
    let fresh = || says(&[], b"");
    let dies = || says(&[ready(), Reply::Begun], b"");
    // The last one is taken first.
    let tries: [(&[Makes<'_>], Option<&str>, u64); 6] = [
        (&[&compiles], None, 0),
        (&[&compiles, &dead, &dead, &dead], None, 3),
        (&[&compiles, &dies], None, 1),
        (&[&compiles, &fresh], None, 1),
        (&[&compiles, &fresh, &fresh], Some("does not answer as a compile worker"), 2),
        (&[&compiles, &dies, &dead, &dies], Some("Gone { begun: true }"), 3),
    ];
    for (makes, fails, crashed) in tries {
        let workers = workers();
        workers.idle().extend(makes.iter().map(|makes| makes()));
        let compiled = workers.compile(SUBJECT, terms(), &Stop::default(), |_| Ok(()));
        match fails {
            None => assert_eq!(compiled.unwrap().0.len(), 36),
            Some(text) => {
                let failed = format!("{:?}", compiled.unwrap_err());
                assert!(failed.contains(text), "{failed}");
            }
        }
        let counts = workers.counts();
        let left = makes.len() - usize::try_from(crashed).unwrap();
        assert_eq!((counts.idle, counts.busy, ended(&workers, Ended::Crashed)), (left, 0, crashed));
    }
}

#[test]
fn what_was_stopped_when_it_had_just_been_compiled_is_not_taken_and_its_worker_is_gone() {
    let (workers, stop) = (workers(), Stop::default());
    workers.idle().push(compiles());
    let stopped = workers.compile(SUBJECT, terms(), &stop, |_| {
        assert_eq!(workers.counts().busy, 1);
        stop.stop(Why::Unwanted);
        Ok(())
    });
    assert!(matches!(stopped, Err(Failed::Stopped)));
    assert_eq!((workers.counts().idle, ended(&workers, Ended::Killed)), (0, 1));
    workers.idle().push(compiles());
    let again = workers.compile(SUBJECT, terms(), &stop, |_| Ok(()));
    assert!(matches!(again, Err(Failed::Stopped)));
    assert_eq!((workers.counts().idle, ended(&workers, Ended::Killed)), (1, 1), "none was begun");
}

#[test]
fn a_worker_is_kept_until_it_has_compiled_much_has_grown_or_has_died() {
    let workers = workers();
    for (builds, resident, kept) in
        [(MOST_BUILDS - 1, MOST_RESIDENT - 1, 1), (MOST_BUILDS, 0, 0), (0, MOST_RESIDENT, 0)]
    {
        let mut worker = says(&[], b"");
        (worker.builds, worker.resident) = (builds, resident);
        workers.give_back(worker);
        assert_eq!(workers.idle().drain(..).count(), kept, "{builds} {resident}");
    }
    assert_eq!(ended(&workers, Ended::Done), 2);
    let (lives, dies) = (says(&[], b""), says(&[], b""));
    dies.kill();
    dies.process.lock().unwrap().wait().unwrap();
    workers.idle().extend([lives, dies]);
    assert_eq!((workers.counts().idle, ended(&workers, Ended::Crashed)), (1, 1));
}

#[test]
fn an_order_allows_all_processors_the_whole_time_and_a_second_more() {
    let cores = thread::available_parallelism().unwrap().get() as u64;
    let Order { cpu, size, state, .. } = Order::new(terms(), SUBJECT);
    assert_eq!((cpu, size, state), (11 * cores + 1, 4, 5));
}

#[test]
fn a_line_is_bounded_and_an_end_is_no_line() {
    let heard = |mut bytes: &[u8]| hear::<String>(&mut bytes);
    let line = |length: usize| format!("\"{}\"\n", "x".repeat(length - 3));
    assert_eq!(heard(line(1 << 20).as_bytes()).unwrap().len(), (1 << 20) - 3);
    assert!(heard(line((1 << 20) + 1).as_bytes()).is_ok(), "the end of the line is not needed");
    assert_eq!(heard(line((1 << 20) + 2).as_bytes()).unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(heard(b"").unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(heard(b"]\n").unwrap_err().kind(), std::io::ErrorKind::InvalidData);
}

#[test]
fn a_worker_that_is_dropped_has_ended() {
    let worker = Worker::spawn(Command::new("sleep").arg("600")).unwrap();
    let process = worker.process.clone();
    assert!(worker.is_alive());
    drop(worker);
    assert!(process.lock().unwrap().try_wait().unwrap().is_some());
}
