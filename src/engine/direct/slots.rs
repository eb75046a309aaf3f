//! How much address space the slots of all instances take, and what they do without where it is short.
//!
//! wasmtime's pooling allocator reserves every slot at start. That makes an instance cheap, and is a hard bound for the
//! whole process. A reservation costs no memory.

use rustix::process::Resource;
use wasmtime::{Config, Enabled, PoolingAllocationConfig};

use super::tunables::MemoryLayout;
use crate::{
    config::{LimitSettings, PoolSettings},
    host_limits::{kernel, soft_limit},
    source::MOST_MEMORIES,
    units::Size,
};

/// Modules of one instance: the plugin's own, and the kernel where that is beside it.
const MODULES: u64 = 2;

/// Memories of one instance: the plugin's and the kernel's. Of one whose slots are wide: as many as a plugin may have, the
/// kernel's, and a heap for what is collected.
const MEMORIES: u64 = 2;
const WIDE_MEMORIES: u64 = MOST_MEMORIES + 2;

/// One of so many instances whose slots are plain may have a heap, and there are a few in any case: a body alone may want
/// it, such as for the length of an array that is null. No compiler makes such a body, and nothing can ever be in it.
const HEAPS: u64 = 8;
const FEW: u64 = 16;

/// For so many instances whose slots are wide there is room for one linked module. All share it.
const LINKED: u64 = 2;

/// Tables of one module. Toolchains make one.
const TABLES: u64 = 4;

const STACK: u64 = 2 << 20;

/// Bytes of a linear memory that a guest has changed and that stay resident while its slot is free: they become what they
/// were by hand. That costs half to two thirds of what it costs to give pages back to the system and to fault them in again
/// (`cargo bench --bench engines -- dirty`). With more, free slots hold more after each hostile guest.
const MOST_RESIDENT: u64 = 1 << 20;

/// Most plugins touch no more.
const LEAST_RESIDENT: u64 = 64 << 10;

/// All free slots together keep at most this part of `pool.memory`, unless that is less than the least for each. What slots
/// keep of a module that is gone, wasmtime does not tell any more, so that nobody is charged for it.
const RESIDENT_PART: u64 = 64;

/// Bytes of a table that stay resident.
const RESIDENT_OF_TABLE: usize = 64 << 10;

/// Slots of each kind that stay as they were used last, for the next instance of the same module. An instance has two
/// memories, and what does not find them anew maps them: with a hundred, fifty plugins took each other's.
const MOST_WARM: u64 = 512;

/// How many slots there are, and what each is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotLayout {
    instances: u64,
    wide: bool,
    memory: u64,
    guard: u64,
    table_elements: u64,
    /// Bytes of a memory that stay resident while its slot is free.
    resident: u64,
}

impl SlotLayout {
    /// The layout with the largest guards that fits into `available` bytes of address space.
    ///
    /// # Errors
    ///
    /// Text that names the settings and what they would need.
    pub(super) fn new(pool: &PoolSettings, limits: &LimitSettings, available: u64) -> Result<Self, String> {
        const PAGE: u64 = 65_536;
        let table_elements = limits.table_elements.clamp(1, 10_000_000);
        let memory = limits.memory.div_ceil(PAGE) * PAGE;
        let instances = pool.max_instances as u64;
        let each = pool.memory / RESIDENT_PART / instances.clamp(1, MOST_WARM);
        let resident = each.clamp(LEAST_RESIDENT, MOST_RESIDENT);
        let layout = |guard| Self { instances, wide: false, memory, guard, table_elements, resident };
        // Guards only save bounds checks on constant offsets, so they shrink first. All slots have the same, as all code has:
        // if they can be such that wide slots fit too, they are.
        let layouts = || [32 << 20, 1 << 20, PAGE].into_iter().map(layout);
        let fits = |layout: &Self| layout.check(available).is_ok();
        let both = layouts().find(|layout| fits(layout) && layout.widened(available).is_ok());
        both.or_else(|| layouts().find(fits)).map_or_else(|| layout(PAGE).check(available), Ok)
    }

    /// The same with wide slots. They get half the address space of the others, which exist in any case.
    ///
    /// # Errors
    ///
    /// Text that names the settings and what they would need.
    pub(super) fn widened(self, available: u64) -> Result<Self, String> {
        Self { wide: true, ..self }.check(available / 2)
    }

    fn check(self, available: u64) -> Result<Self, String> {
        if self.bytes() <= u128::from(available) {
            return Ok(self);
        }
        Err(format!(
            "pool.max_instances = {} with limits.memory = {} bytes needs {} MiB of address space{}, and there are {} for it \
             ({} of ulimit -v, or of the processor's); lower either",
            self.instances,
            self.memory,
            self.bytes() >> 20,
            if self.wide { " for plugins with a collected heap or several memories" } else { "" },
            available >> 20,
            if self.wide { "an eighth" } else { "a quarter" },
        ))
    }

    /// Slots for modules that plugins are linked with: each has a memory and tables. Where slots are not wide there are none.
    pub(super) fn linked(self) -> u64 {
        if self.wide { (self.instances / LINKED).max(FEW) } else { 0 }
    }

    fn heaps(self) -> u64 {
        if self.wide { self.instances } else { (self.instances / HEAPS).max(FEW) }
    }

    fn memories(self) -> u64 {
        let (each, more) = if self.wide { (WIDE_MEMORIES, self.linked()) } else { (MEMORIES, self.heaps()) };
        self.instances.saturating_mul(each).saturating_add(more)
    }

    fn tables(self) -> u64 {
        self.instances.saturating_add(self.linked()).saturating_mul(TABLES)
    }

    fn bytes(self) -> u128 {
        let memories = u128::from(self.memories()) * u128::from(self.memory + self.guard);
        let tables = u128::from(self.tables()) * u128::from(self.table_elements * 8);
        memories + tables + u128::from(self.instances) * u128::from(STACK)
    }

    /// Compares what is writable from the start, in bytes, with what the system can still promise.
    ///
    /// # Errors
    ///
    /// Text that names the settings and the system's limit.
    pub(super) fn check_promise(self, promised: u64) -> Result<(), String> {
        let tables = self.tables().saturating_mul(self.table_elements * 8);
        let needed = tables.saturating_add(self.instances.saturating_mul(STACK));
        if needed <= promised {
            return Ok(());
        }
        Err(format!(
            "pool.max_instances = {} with limits.table_elements = {} needs {} of memory that is promised at once, and there \
             is {} left (vm.overcommit_memory is 2, or ulimit -v); lower the settings, or change that with sysctl",
            self.instances,
            self.table_elements,
            Size(needed),
            Size(promised)
        ))
    }

    /// No larger than the limit: thousands of slots fit into 47 bits, with smaller page tables.
    pub(super) fn memory(self) -> MemoryLayout {
        MemoryLayout { reservation: self.memory, guard: self.guard }
    }

    pub(super) fn apply(self, config: &mut Config) {
        let count = |all: u64| u32::try_from(all).unwrap_or(u32::MAX);
        let own_memories = if self.wide { MOST_MEMORIES } else { 1 };
        let mut pool = PoolingAllocationConfig::new();
        pool.total_core_instances(count(self.instances.saturating_mul(MODULES).saturating_add(self.linked())))
            .total_memories(count(self.memories()))
            .total_gc_heaps(count(self.heaps()))
            .total_tables(count(self.tables()))
            .total_stacks(count(self.instances))
            .max_memories_per_module(count(1 + own_memories))
            .max_tables_per_module(count(TABLES))
            .max_memory_size(usize::try_from(self.memory).unwrap_or(usize::MAX))
            .table_elements(usize::try_from(self.table_elements).unwrap_or(usize::MAX))
            .max_unused_warm_slots(count(self.instances.min(MOST_WARM)))
            .linear_memory_keep_resident(usize::try_from(self.resident).unwrap_or(usize::MAX))
            .table_keep_resident(RESIDENT_OF_TABLE)
            // Asks the system which pages were touched, from Linux 6.7 on, instead of taking them for the first ones.
            .pagemap_scan(Enabled::Auto);
        config.allocation_strategy(pool).async_stack_size(usize::try_from(STACK).unwrap_or(usize::MAX));
    }
}

/// Mappings of an instance's stack, which is there from the start: itself and its guard.
const MAPPINGS_OF_A_STACK: u64 = 2;

/// Mappings of a runtime with one instance, once it is in use: its code, its memories, and what they begin with.
const MAPPINGS_OF_A_RUNTIME: u64 = 14;

/// Mappings of code that is kept mapped.
const MAPPINGS_OF_CODE: u64 = 4;

/// Mappings of a process that has none of these.
const OTHER_MAPPINGS: u64 = 1_000;

/// Compares the mappings that these settings take, with `kept` modules, with those that the system gives a process. Some text is a warning: not
/// all that the settings permit can live at once.
///
/// # Errors
///
/// Text that names the settings and the system's limit: not even the slots can be made.
pub(super) fn check_mappings(pool: &PoolSettings, kept: u64, most: u64) -> Result<Option<String>, String> {
    let PoolSettings { max_instances, capacity, .. } = *pool;
    let stacks = (max_instances as u64).saturating_mul(MAPPINGS_OF_A_STACK).saturating_add(OTHER_MAPPINGS);
    let code = kept.saturating_mul(MAPPINGS_OF_CODE);
    let all = (capacity as u64).saturating_mul(MAPPINGS_OF_A_RUNTIME).saturating_add(stacks).saturating_add(code);
    let said = |needs: &str, mappings: u64| {
        format!(
            "pool.max_instances = {max_instances} with pool.capacity = {capacity} {needs} about {mappings} memory \
             mappings, and vm.max_map_count is {most}; lower the settings, or raise that with sysctl"
        )
    };
    match (stacks > most, all > most) {
        (true, _) => Err(said("needs", stacks)),
        (false, true) => Ok(Some(said("takes", all))),
        (false, false) => Ok(None),
    }
}

/// Mappings that the system gives a process.
pub(super) fn most_mappings() -> u64 {
    kernel("vm/max_map_count").parse().unwrap_or(u64::MAX)
}

/// Address space that one engine may reserve: a quarter of what the processor has, or of this process's limit.
pub(super) fn available() -> u64 {
    // Of 47 bits half for two engines, with and without fuel, a quarter for two with wide slots, and the rest for
    // everything else.
    let most = 1 << 45;
    most.min(soft_limit(Resource::As) / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(instances: usize, memory: u64, available: u64) -> Result<SlotLayout, String> {
        let pool = PoolSettings { max_instances: instances, ..PoolSettings::default() };
        SlotLayout::new(&pool, &LimitSettings { memory, ..LimitSettings::default() }, available)
    }

    #[test]
    fn an_instance_takes_less_than_half_of_what_five_memories_and_sixteen_tables_took() {
        let defaults = layout(1024, 64 << 20, 1 << 45).unwrap();
        let before = 1024 * (5 * (96_u128 << 20) + 16 * 8 * u128::from(defaults.table_elements) + u128::from(STACK));
        assert!(defaults.bytes() * 2 < before, "{} of {before}", defaults.bytes());
    }

    #[test]
    fn free_slots_keep_an_eighth_of_the_memory_at_most_or_little_each() {
        let resident = |memory: u64, max_instances| {
            let pool = PoolSettings { max_instances, memory, ..PoolSettings::default() };
            SlotLayout::new(&pool, &LimitSettings::default(), u64::MAX >> 17).unwrap().resident
        };
        assert_eq!(resident(8 << 30, 1024), (8 << 30) / 64 / MOST_WARM);
        assert_eq!(resident(2 << 30, 16), MOST_RESIDENT);
        assert_eq!(resident(u64::MAX, 1024), MOST_RESIDENT);
        assert_eq!(resident(64 << 20, 1024), LEAST_RESIDENT);
    }

    #[test]
    fn the_defaults_fit_with_room_to_spare() {
        assert_eq!(layout(1024, 64 << 20, 2 << 40).unwrap().guard, 32 << 20);
    }

    #[test]
    fn mappings_are_reckoned_before_the_slots_are_made() {
        let with = |kept: u64, capacity: usize, max_instances: usize| {
            let pool = PoolSettings { capacity, max_instances, ..PoolSettings::default() };
            check_mappings(&pool, kept, 65_530)
        };
        let check = |capacity, max_instances| with(0, capacity, max_instances);
        assert_eq!(check(256, 1024), Ok(None), "the defaults");
        assert_eq!(check(256, 30_000), Ok(None));
        assert_eq!(with(1024, 256, 1024), Ok(None), "the defaults, with all code that can be kept");
        assert!(with(1024, 256, 30_000).unwrap().is_some());
        let warning = check(5_000, 5_000).unwrap().unwrap();
        assert!(warning.contains("pool.capacity = 5000") && warning.contains("vm.max_map_count is 65530"), "{warning}");
        let refused = check(256, 33_000).unwrap_err();
        assert!(refused.contains("pool.max_instances = 33000") && refused.contains("vm.max_map_count"), "{refused}");
    }

    #[test]
    fn what_is_promised_at_once_is_held_against_what_the_system_promises() {
        let defaults = layout(1024, 64 << 20, 1 << 40).unwrap();
        assert_eq!(defaults.check_promise(8 << 30), Ok(()));
        let refused = defaults.check_promise(4 << 30).unwrap_err();
        assert!(
            refused.contains("pool.max_instances = 1024") && refused.contains("limits.table_elements"),
            "{refused}"
        );
        assert!(refused.contains("vm.overcommit_memory is 2"), "{refused}");
    }

    #[test]
    fn wide_slots_fit_where_they_can_and_are_refused_by_name_where_they_cannot() {
        let defaults = layout(1024, 64 << 20, 1 << 45).unwrap();
        assert!(defaults.widened(1 << 45).unwrap().bytes() < 4 * defaults.bytes());
        let refused = defaults.widened(1 << 39).unwrap_err();
        assert!(refused.contains("several memories") && refused.contains("pool.max_instances = 1024"), "{refused}");
        // With smaller guards both fit.
        assert_eq!(layout(1024, 64 << 20, 1 << 40).unwrap().guard, 1 << 20);
        // The others do not suffer for them where nothing helps.
        assert_eq!(layout(1024, 64 << 20, 410 << 30).unwrap().guard, 32 << 20);
    }

    #[test]
    fn guards_shrink_before_the_layout_is_refused() {
        assert_eq!(layout(1024, 64 << 20, 180 << 30).unwrap().guard, 1 << 20);
        let error = layout(1_000_000, 4 << 30, 1 << 45).unwrap_err();
        assert!(error.contains("pool.max_instances = 1000000") && error.contains("limits.memory"), "{error}");
    }

    #[test]
    fn there_are_as_many_slots_as_the_instances_take_and_a_few_that_they_share() {
        let (memory, guard, table_elements) = (3 * 65_536, 65_536, 1000);
        for (instances, wide, linked, heaps, memories, tables) in [
            (1000, false, 0, 125, 2125, 4000),
            (1000, true, 500, 1000, 1000 * (MOST_MEMORIES + 2) + 500, 6000),
            (100, false, 0, 16, 216, 400),
            (20, true, 16, 20, 20 * (MOST_MEMORIES + 2) + 16, 144),
        ] {
            let layout = SlotLayout { instances, wide, memory, guard, table_elements, resident: 0 };
            let slots = (layout.linked(), layout.heaps(), layout.memories(), layout.tables());
            assert_eq!(slots, (linked, heaps, memories, tables), "{instances} {wide}");
            let bytes = memories * (4 * 65_536) + tables * 8000 + instances * (2 << 20);
            assert_eq!(layout.bytes(), u128::from(bytes));
            assert_eq!(layout.check(bytes), Ok(layout));
            assert!(layout.check(bytes - 1).unwrap_err().contains(&format!("needs {} MiB", bytes >> 20)));
            let promised = tables * 8000 + instances * (2 << 20);
            assert_eq!(layout.check_promise(promised), Ok(()));
            assert!(layout.check_promise(promised - 1).is_err());
        }
    }

    #[test]
    fn a_memory_takes_whole_pages_and_a_table_at_least_one_element() {
        let layout = |memory, table_elements| {
            let limits = LimitSettings { memory, table_elements, ..LimitSettings::default() };
            let layout = SlotLayout::new(&PoolSettings::default(), &limits, 1 << 45).unwrap();
            (layout.memory().reservation, layout.table_elements)
        };
        assert_eq!(layout(65_536, 0), (65_536, 1));
        assert_eq!(layout(65_537, u64::MAX), (2 * 65_536, 10_000_000));
    }

    #[test]
    fn settings_may_take_all_mappings_that_there_are_and_not_one_more() {
        let pool = PoolSettings { capacity: 10, max_instances: 20, ..PoolSettings::default() };
        let (stacks, all) = (20 * 2 + 1000, 20 * 2 + 1000 + 10 * 14 + 5 * 4);
        let check = |most| check_mappings(&pool, 5, most).map(|warning| warning.is_some()).map_err(drop);
        assert_eq!([all, all - 1, stacks, stacks - 1].map(check), [Ok(false), Ok(true), Ok(true), Err(())]);
    }

    #[test]
    fn an_engine_may_reserve_a_quarter_of_the_address_space() {
        assert_eq!(available(), (32 << 40).min(soft_limit(Resource::As) / 4));
    }
}
