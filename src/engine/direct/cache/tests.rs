//! What is kept, in memory and in a folder, and what goes.

use super::*;
use crate::{memory::MemoryKind, source::Digest};

/// A module that exports this name, and as many bytes as its memory begins with.
fn module(engine: &Engine, name: &str, data: usize) -> (Key, Vec<u8>) {
    let data = "x".repeat(data);
    let text = format!("(module (memory 64) (data (i32.const 0) \"{data}\") (func (export \"{name}\")))");
    let bytes = wat::parse_str(text).unwrap();
    (Key { plugin: Digest::of(&bytes), engine: 1 }, engine.precompile_module(&bytes).unwrap())
}

fn take(cache: &Cache, engine: &Engine, account: &Arc<MemoryBudget>, (key, code): &(Key, Vec<u8>)) -> Arc<Loaded> {
    let sealed = Sealed::new(code, Destination::new(code.len() as u64, true)).unwrap();
    let wanted = Wanted::to_load(sealed.len(), sealed.is_mapped());
    Arc::new(cache.take(engine, *key, sealed, charges(account, wanted), Keeps::Anywhere).unwrap())
}

fn charges(account: &Arc<MemoryBudget>, wanted: Wanted) -> (Charge, Charge) {
    (account.charge(MemoryKind::Code, wanted.loaded), account.charge(MemoryKind::Cache, wanted.unloaded))
}

fn load(cache: &Cache, engine: &Engine, key: Key) -> Option<Loaded> {
    let account = MemoryBudget::new(u64::MAX);
    cache.load(engine, key, true, |wanted| Ok(charges(&account, wanted))).unwrap()
}

fn folder(root: &Path, limit: u64) -> Cache {
    Cache::open(&CodeCache::Folder(root.join("code")), limit).unwrap()
}

#[test]
fn what_is_kept_comes_back_and_the_oldest_goes_first() {
    let (engine, account) = (Engine::default(), MemoryBudget::new(u64::MAX));
    let temporary = tempfile::tempdir().unwrap();
    for data in [10, 1 << 20] {
        let [a, b] = ["a", "b"].map(|name| module(&engine, name, data));
        let limit = a.1.len() as u64 * 3 / 2;
        let mut caches = vec![folder(&temporary.path().join(data.to_string()), limit)];
        if data == 10 {
            caches.push(Cache::open(&CodeCache::Memory, limit).unwrap());
        }
        for cache in caches {
            assert!(load(&cache, &engine, a.0).is_none());
            take(&cache, &engine, &account, &a);
            assert!(load(&cache, &engine, a.0).unwrap().get_export("a").is_some());
            take(&cache, &engine, &account, &b);
            assert!(load(&cache, &engine, a.0).is_none(), "no room for both");
            assert!(load(&cache, &engine, b.0).is_some());
            assert!(load(&cache, &engine, Key { engine: 2, ..b.0 }).is_none(), "of another engine");
        }
    }
}

#[test]
fn no_more_files_go_than_must_and_none_that_is_not_ours() {
    let temporary = tempfile::tempdir().unwrap();
    let names = ["1", "2", "3", "4"].map(|name| format!("{OURS}{name}"));
    for (age, name) in (0..4).zip(&names).chain([(9, &"not-ours".to_owned())]) {
        let path = temporary.path().join(name);
        fs::write(&path, [0; 100]).unwrap();
        let modified = std::time::SystemTime::now() - std::time::Duration::from_secs(100 - age);
        fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    }
    fs::create_dir(temporary.path().join(format!("{OURS}folder"))).unwrap();
    for (limit, left) in [(400, 4), (399, 3), (101, 1), (0, 0)] {
        make_room(temporary.path(), limit).unwrap();
        let kept: Vec<_> = names.iter().filter(|name| temporary.path().join(name).exists()).collect();
        assert_eq!(kept, names[4 - left..].iter().collect::<Vec<_>>(), "the oldest go first, to {limit} bytes");
    }
    assert!(temporary.path().join("not-ours").exists());
}

#[test]
fn large_code_is_charged_once_and_kept_when_nobody_runs_it() {
    let (engine, account) = (Engine::default(), MemoryBudget::new(u64::MAX));
    let [a, b, c] = ["a", "b", "c"].map(|name| module(&engine, name, 1 << 20));
    let size = a.1.len() as u64 + Sealed::DIGEST;
    let cache = Cache::open(&CodeCache::Memory, size * 5 / 2).unwrap();
    let run = take(&cache, &engine, &account, &a);
    assert!(cache.mapped(a.0).is_none(), "it is in use");
    assert_eq!((account.uses().code, account.uses().cache), (size, 0));
    assert!(cache.give_back(a.0, run, Keeps::Anywhere).is_empty());
    assert_eq!((account.uses().code, account.uses().cache), (0, size));
    let run = cache.mapped(a.0).unwrap();
    assert_eq!((account.uses().code, account.unused()), (size, 0));
    assert!(run.get_export("a").is_some() && cache.mapped(a.0).is_none());
    for (key, run) in
        [(a.0, run), (b.0, take(&cache, &engine, &account, &b)), (c.0, take(&cache, &engine, &account, &c))]
    {
        cache.give_back(key, run, Keeps::Anywhere);
    }
    assert!(cache.mapped(a.0).is_none(), "no room for all three");
    assert_eq!(account.unused(), 2 * size);
    assert_eq!(cache.give_way(&MemoryBudget::new(1), size), 0, "it is not of that account");
    assert_eq!(cache.give_way(&account, size - 1), size);
    assert!(cache.mapped(b.0).is_none() && cache.mapped(c.0).is_some(), "the oldest has given way");
    assert_eq!(account.used(), 0);
}

#[test]
fn code_larger_than_the_cache_drops_nothing_of_it() {
    let (engine, account) = (Engine::default(), MemoryBudget::new(u64::MAX));
    let [small, large] = [("a", 10), ("b", 4 << 20)].map(|(name, data)| module(&engine, name, data));
    let cache = Cache::open(&CodeCache::Memory, 1 << 20).unwrap();
    for module in [&small, &large] {
        let run = take(&cache, &engine, &account, module);
        cache.give_back(module.0, run, Keeps::Anywhere);
    }
    assert!(cache.mapped(large.0).is_none(), "no room for it");
    assert!(load(&cache, &engine, small.0).is_some(), "it would have stayed");
}

#[test]
fn code_that_holds_no_file_stays_when_there_are_too_many_files() {
    let (engine, account) = (Engine::default(), MemoryBudget::new(u64::MAX));
    let small = module(&engine, "small", 10);
    let mut kept = InMemory::new(u64::MAX);
    kept.most_mapped = 1;
    let cache = Cache { kept: Kept::Memory(Mutex::new(kept)), limit: u64::MAX };
    cache.give_back(small.0, take(&cache, &engine, &account, &small), Keeps::Anywhere);
    let [a, b] = ["a", "b"].map(|name| module(&engine, name, 1 << 20));
    for large in [&a, &b] {
        cache.give_back(large.0, take(&cache, &engine, &account, large), Keeps::Anywhere);
    }
    assert!(load(&cache, &engine, small.0).is_some(), "it holds no file");
    assert!(cache.mapped(a.0).is_none() && cache.mapped(b.0).is_some(), "one file");
}

#[test]
fn what_gives_way_is_given_back_whoever_loads_it() {
    let (engine, account) = (Engine::default(), MemoryBudget::new(u64::MAX));
    let small = module(&engine, "a", 10);
    let cache = Cache::open(&CodeCache::Memory, 1 << 20).unwrap();
    drop(take(&cache, &engine, &account, &small));
    let kept = account.unused();
    let room = |wanted| {
        let (used, unused) = (account.used(), account.unused());
        let freed = cache.give_way(&account, u64::MAX);
        assert_eq!((used - account.used(), unused), (freed, freed));
        Ok(charges(&account, wanted))
    };
    assert!(cache.load(&engine, small.0, true, room).unwrap().is_some());
    assert_eq!((account.unused(), account.used()), (kept, kept), "it is kept on");
    assert_eq!(cache.give_way(&account, u64::MAX), kept);
    assert_eq!(account.used(), 0);
}

#[test]
fn small_code_goes_by_when_it_was_last_run() {
    let (engine, account) = (Engine::default(), MemoryBudget::new(u64::MAX));
    let [a, b, c] = ["a", "b", "c"].map(|name| module(&engine, name, 10));
    let cache = Cache::open(&CodeCache::Memory, a.1.len() as u64 * 5 / 2).unwrap();
    let [run_a, run_b] = [&a, &b].map(|module| take(&cache, &engine, &account, module));
    for (key, run) in [(b.0, run_b), (a.0, run_a)] {
        assert_eq!(cache.give_back(key, run, Keeps::Anywhere).len(), 1, "the module goes, and its bytes stay");
    }
    take(&cache, &engine, &account, &c);
    assert!(load(&cache, &engine, b.0).is_none() && load(&cache, &engine, a.0).is_some());
}

#[test]
fn a_file_that_was_changed_is_not_loaded() {
    let (engine, account) = (Engine::default(), MemoryBudget::new(u64::MAX));
    let temporary = tempfile::tempdir().unwrap();
    let cache = folder(temporary.path(), 4 << 20);
    for data in [10, 1 << 20] {
        let module = module(&engine, "a", data);
        take(&cache, &engine, &account, &module);
        let path = file(&temporary.path().join("code"), module.0);
        let whole = fs::read(&path).unwrap();
        for at in [0, 40, whole.len() - 1] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, changed).unwrap();
            assert!(load(&cache, &engine, module.0).is_none(), "byte {at}");
            assert!(!path.exists(), "it is removed");
        }
        fs::write(&path, &whole[..20]).unwrap();
        assert!(load(&cache, &engine, module.0).is_none());
        fs::write(&path, &whole).unwrap();
        assert!(load(&cache, &engine, module.0).is_some());
    }
}

#[test]
fn a_folder_that_others_can_enter_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().join("open");
    fs::DirBuilder::new().mode(0o755).create(&root).unwrap();
    let error = Cache::open(&CodeCache::Folder(root), 1).err().unwrap().to_string();
    assert!(error.contains("chmod 700"), "{error}");
}

#[test]
fn what_may_hold_secrets_is_kept_in_memory_alone_and_what_nobody_would_find_again_nowhere() {
    let (engine, account) = (Engine::default(), MemoryBudget::new(u64::MAX));
    let temporary = tempfile::tempdir().unwrap();
    let (key, code) = module(&engine, "a", 10);
    for (keeps, in_memory, in_folder) in
        [(Keeps::Nowhere, false, false), (Keeps::InMemory, true, false), (Keeps::Anywhere, true, true)]
    {
        let memory = Cache::open(&CodeCache::Memory, 1 << 20).unwrap();
        for (cache, is_kept) in [(memory, in_memory), (folder(temporary.path(), 1 << 20), in_folder)] {
            let sealed = Sealed::new(&code, Destination::new(code.len() as u64, true)).unwrap();
            let wanted = Wanted::to_load(sealed.len(), sealed.is_mapped());
            cache.take(&engine, key, sealed, charges(&account, wanted), keeps).unwrap();
            assert_eq!(load(&cache, &engine, key).is_some(), is_kept, "{keeps:?}");
        }
    }
}
