//! The ledger of a simulated world: slow, and sometimes without room.

use ostler_domain::Traits;
use ostler_store::{ProcessKey, SessionChange, SessionRecord, StoreError, TreeRecord};
use ostler_supervisor::ledger::{Job, Records};
use std::collections::BTreeMap;
use tokio::sync::mpsc;

use super::world::World;
use crate::dice::Dice;

/// Runs the ledger's jobs, one after another. Never returns while somebody may have work.
pub(super) async fn keep(world: World, mut jobs: mpsc::Receiver<Job>) {
    let mut dice = Dice::of(world.plan().seed, "ledger");
    let known = known_traits(&world, &mut dice);
    let mut memory = Memory { world, dice: dice.clone(), known, traits: BTreeMap::new() };
    while let Some(job) = jobs.recv().await {
        let slow = memory.world.plan().disk_slow;
        if slow > 0 && dice.chance(50) {
            tokio::time::sleep(dice.millis(0, slow)).await;
        }
        job(&mut memory);
    }
}

struct Memory {
    world: World,
    dice: Dice,
    /// What an earlier daemon has learnt of each server, in the order in which they are asked for: that of the
    /// configuration, the last one first.
    known: Vec<Option<Traits>>,
    traits: BTreeMap<String, Traits>,
}

fn known_traits(world: &World, dice: &mut Dice) -> Vec<Option<Traits>> {
    let servers = world.plan().config.servers.iter().rev();
    let known = servers.map(|server| {
        let modern = world.plan().temperaments.get(server.name.as_str()).is_some_and(|it| it.modern);
        let traits = Traits { legacy: Some(!modern), modern: Some(modern), asks_back: false };
        (server.transport.is_mcp() && dice.chance(40)).then_some(traits)
    });
    known.collect()
}

impl Memory {
    fn room(&mut self, doing: &'static str) -> Result<(), StoreError> {
        if !self.dice.chance(self.world.plan().disk_full) {
            return Ok(());
        }
        self.world.lock().ledger_failed = true;
        self.world.step(|| format!("ledger: no space for {doing}"));
        Err(StoreError::NoSpace { path: "simulated".into(), doing })
    }
}

impl Records for Memory {
    fn trees_insert(&mut self, tree: &TreeRecord) -> Result<(), StoreError> {
        self.room("entering a tree")?;
        let mark = tree.mark.clone();
        if self.world.lock().rows.insert(mark.clone(), tree.clone()).is_some() {
            self.world.violate(format!("the mark {mark} was entered twice"));
        }
        self.world.step(|| format!("ledger: {} g{} entered", tree.instance, tree.generation));
        Ok(())
    }

    fn trees_set_guard(&mut self, mark: &str, guard: ProcessKey) -> Result<bool, StoreError> {
        self.room("adding a guard")?;
        let mut state = self.world.lock();
        let row = state.rows.get_mut(mark);
        Ok(row.map(|row| row.guard = Some(guard)).is_some())
    }

    fn trees_set_leader(&mut self, mark: &str, leader: ProcessKey) -> Result<bool, StoreError> {
        self.room("adding a leader")?;
        let mut state = self.world.lock();
        let row = state.rows.get_mut(mark);
        Ok(row.map(|row| row.leader = Some(leader)).is_some())
    }

    fn trees_remove(&mut self, mark: &str) -> Result<bool, StoreError> {
        self.room("removing a tree")?;
        let (row, alive) = {
            let mut state = self.world.lock();
            (state.rows.remove(mark), state.trees.get(mark).is_some_and(|tree| tree.alive))
        };
        match &row {
            Some(row) if alive => self.world.violate(format!(
                "{} g{} was struck out of the ledger while it lives",
                row.instance, row.generation
            )),
            Some(row) => {
                self.world.step(|| format!("ledger: {} g{} struck out", row.instance, row.generation))
            }
            None => self.world.violate(format!("the tree {mark} was struck out of the ledger twice")),
        }
        Ok(row.is_some())
    }

    fn traits_get(&mut self, identity: &str) -> Result<Option<Traits>, StoreError> {
        let earlier = self.known.pop().flatten();
        Ok(self.traits.get(identity).copied().or(earlier))
    }

    fn traits_put(&mut self, identity: &str, traits: Traits, _now_unix_ms: u64) -> Result<usize, StoreError> {
        self.room("remembering a server")?;
        self.traits.insert(identity.to_owned(), traits);
        Ok(0)
    }

    /// A simulated daemon does not start again.
    fn sessions_write(&mut self, _changes: &[SessionChange]) -> Result<usize, StoreError> {
        Ok(0)
    }

    fn sessions_all(&mut self) -> Result<Vec<SessionRecord>, StoreError> {
        Ok(Vec::new())
    }
}
