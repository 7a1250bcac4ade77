//! One simulated tree: a guard, a server below it and the server's descendants.
//!
//! It keeps the contract of `ostler-os` to the letter (order of reports, who ends what, when `TreeEmpty` is said) and
//! uses every freedom that contract leaves. What it will do stands in an agenda; the task only waits for the first
//! entry, or for the daemon.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ostler_os::{Exit, GuardEvent, Mark, SpawnFailure};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::pipe::Pipe;
use super::plan::Temperament;
use super::system::Orders;
use super::world::World;
use crate::dice::Dice;

/// From the leader's end to SIGKILL for what it left (`ostler-os`, `guard::LEFTOVER_GRACE`).
const LEFTOVER_GRACE: Duration = Duration::from_millis(200);
/// From the daemon's end to SIGKILL (`ostler-os`, `guard::DAEMON_GONE_GRACE`).
const DAEMON_GONE_GRACE: Duration = Duration::from_millis(500);
/// Killing for so long is reported (`ostler-os`, `guard::STUCK_AFTER`).
pub(super) const STUCK_AFTER: Duration = Duration::from_secs(2);

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

/// What a tree is made of.
pub(super) struct Birth {
    pub(super) world: World,
    pub(super) mark: Mark,
    pub(super) name: String,
    pub(super) temperament: Temperament,
    pub(super) dice: Dice,
    pub(super) stdin: Pipe,
    pub(super) stdout: Pipe,
    pub(super) stderr: Pipe,
    pub(super) orders: Arc<Orders>,
    pub(super) events: mpsc::Sender<GuardEvent>,
}

/// An entry of the agenda.
#[derive(Debug)]
enum Act {
    Start,
    Fork,
    /// A line on standard output; true when it opens the conversation.
    Say(Value, bool),
    Die(usize, Exit),
    CloseOutput,
    CloseInput,
    KillAll,
    ReportStuck,
    GuardDies,
    Empty,
    Tell(GuardEvent),
}

/// A process; the first is the leader.
#[derive(Debug)]
struct One {
    pid: u32,
    alive: bool,
    dying: bool,
    deaf: bool,
}

/// See the module's documentation.
pub(super) struct Process {
    it: Birth,
    agenda: BTreeMap<(Instant, u64), Act>,
    next: u64,
    last_tell: Instant,
    all: Vec<One>,
    started: bool,
    guard_dead: bool,
    terminates: u32,
    killing: bool,
    told_to_end: bool,
    end_seen: bool,
    reading: bool,
    mute: bool,
    refuses: bool,
    dies_early: bool,
    /// Descendants hold its pipes open.
    shares_pipes: bool,
    over: bool,
}

impl Process {
    pub(super) fn new(mut birth: Birth) -> Self {
        let now = Instant::now();
        let (dice, temper) = (&mut birth.dice, &birth.temperament);
        let start =
            if dice.chance(temper.spawn_hangs) { dice.millis(1_000, 30_000) } else { dice.millis(0, 20) };
        let guard_dies = dice.chance(temper.guard_dies).then(|| dice.millis(0, 20_000));
        let (mute, refuses, dies_early) =
            (dice.chance(temper.mute), dice.chance(temper.refuses), dice.chance(temper.dies_early));
        let shares_pipes = dice.chance(50);
        let mut process = Self {
            it: birth,
            agenda: BTreeMap::new(),
            next: 0,
            last_tell: now,
            all: Vec::new(),
            started: false,
            guard_dead: false,
            terminates: 0,
            killing: false,
            told_to_end: false,
            end_seen: false,
            reading: true,
            mute,
            refuses,
            dies_early,
            shares_pipes,
            over: false,
        };
        process.plan(start, Act::Start);
        if let Some(after) = guard_dies {
            process.plan(after, Act::GuardDies);
        }
        process
    }

    /// Lives until nothing of it is left and the daemon was told.
    pub(super) async fn run(mut self) {
        while !self.over {
            let next = self.agenda.first_key_value().map(|((at, _), _)| *at);
            tokio::select! {
                biased;
                () = self.it.orders.wake.notified() => self.look(),
                () = until(next) => self.due(),
            }
        }
    }

    fn plan(&mut self, after: Duration, act: Act) {
        self.next += 1;
        self.agenda.insert((Instant::now() + after, self.next), act);
    }

    fn due(&mut self) {
        let Some(entry) = self.agenda.first_entry() else { return };
        if entry.key().0 <= Instant::now() {
            let act = entry.remove();
            self.act(act);
            self.look();
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Start => self.start(),
            Act::Fork => self.fork(),
            Act::Say(message, opens) => self.say(&message, opens),
            Act::Die(index, exit) => self.die(index, exit),
            Act::CloseOutput => self.it.stdout.close_writer(),
            Act::CloseInput => {
                self.reading = false;
                self.it.stdin.close_reader();
            }
            Act::KillAll => self.kill_all(),
            Act::ReportStuck => self.report_stuck(),
            Act::GuardDies => self.guard_dies(),
            Act::Empty => self.empty(),
            Act::Tell(event) => self.deliver(event),
        }
    }

    // ---- beginning ----------------------------------------------------------------------------------------

    fn start(&mut self) {
        if self.guard_dead {
            return;
        }
        self.started = true;
        let temper = self.it.temperament.clone();
        if self.it.dice.chance(temper.spawn_fails) {
            let message = "cannot execute: No such file or directory".to_owned();
            let failure = SpawnFailure { kind: std::io::ErrorKind::NotFound, errno: Some(2), message };
            self.tell(GuardEvent::SpawnFailed(failure));
            let after = self.it.dice.millis(0, 5);
            self.plan(after, Act::Empty);
            self.guard_may_die_at_once();
            return;
        }
        let pid = self.add_process();
        if let Some(tree) = self.it.world.lock().tree(self.it.mark) {
            tree.leader_pid = Some(pid);
        }
        self.it.world.step(|| format!("{}: runs as {pid}", self.it.name));
        self.tell(GuardEvent::Started { pid: pid.cast_signed(), start_time: u64::from(pid) });
        for _ in 0..temper.children {
            let after = self.it.dice.millis(0, 10_000);
            self.plan(after, Act::Fork);
        }
        if self.it.dice.chance(temper.mortal) {
            let after = self.it.dice.millis(0, 60_000);
            let clean = self.it.dice.chance(temper.clean);
            let exit =
                if clean { Exit::Code(0) } else { *self.it.dice.pick(&[Exit::Code(1), Exit::Signal(11)]) };
            self.plan(after, Act::Die(0, exit));
        }
        if self.it.dice.chance(temper.closes) {
            let after = self.it.dice.millis(0, 30_000);
            let act = if self.it.dice.chance(50) { Act::CloseOutput } else { Act::CloseInput };
            self.plan(after, act);
        }
    }

    /// What it has just said is then its last word.
    fn guard_may_die_at_once(&mut self) {
        if self.it.dice.chance(self.it.temperament.guard_dies) {
            let after = self.it.dice.millis(0, 5);
            self.plan(after, Act::GuardDies);
        }
    }

    fn add_process(&mut self) -> u32 {
        let pid = self.it.world.lock().new_pid();
        let deaf = self.it.dice.chance(self.it.temperament.ignores_term);
        self.all.push(One { pid, alive: true, dying: false, deaf });
        pid
    }

    fn fork(&mut self) {
        if self.all.iter().any(|one| one.alive && !one.dying) && !self.killing {
            self.add_process();
        }
    }

    // ---- ending -------------------------------------------------------------------------------------------

    fn leader_lives(&self) -> bool {
        self.all.first().is_some_and(|leader| leader.alive)
    }

    fn die(&mut self, index: usize, exit: Exit) {
        let Some(one) = self.all.get_mut(index).filter(|one| one.alive) else { return };
        one.alive = false;
        let pid = one.pid;
        self.it.world.step(|| format!("{}: process {pid} {exit}", self.it.name));
        if index == 0 {
            self.tell(GuardEvent::LeaderExited(exit));
            self.guard_may_die_at_once();
            if !self.shares_pipes {
                self.close_pipes();
            }
            if !self.told_to_end && !self.killing {
                self.terminate_all();
                self.plan(LEFTOVER_GRACE, Act::KillAll);
            }
        }
        if self.all.iter().all(|one| !one.alive) {
            self.close_pipes();
            let after = self.it.dice.millis(0, 5);
            self.plan(after, Act::Empty);
        }
    }

    fn close_pipes(&mut self) {
        self.reading = false;
        self.it.stdin.close_reader();
        self.it.stdout.close_writer();
        self.it.stderr.close_writer();
    }

    fn terminate_all(&mut self) {
        for index in 0..self.all.len() {
            let one = &mut self.all[index];
            if one.alive && !one.dying && !one.deaf {
                one.dying = true;
                let after = self.it.dice.millis(0, 1_500);
                self.plan(after, Act::Die(index, Exit::Signal(SIGTERM)));
            }
        }
    }

    /// SIGKILL: the kernel ends each process at once, unless it holds it.
    fn kill_all(&mut self) {
        if self.killing {
            return;
        }
        self.killing = true;
        for index in 0..self.all.len() {
            if !self.all[index].alive {
                continue;
            }
            let temper = &self.it.temperament;
            let held = self.it.dice.chance(temper.held).then_some(temper.held_ms);
            let after = self.it.dice.millis(0, held.unwrap_or(3));
            self.plan(after, Act::Die(index, Exit::Signal(SIGKILL)));
        }
        self.plan(STUCK_AFTER, Act::ReportStuck);
    }

    fn report_stuck(&mut self) {
        let pids: Vec<i32> =
            self.all.iter().filter(|one| one.alive).map(|one| one.pid.cast_signed()).collect();
        if !pids.is_empty() {
            self.it.world.step(|| format!("{}: held by the kernel: {pids:?}", self.it.name));
            self.tell(GuardEvent::Stuck { pids });
        }
    }

    /// What it leaves is swept up by the daemon's side of `ostler-os`.
    fn guard_dies(&mut self) {
        if self.guard_dead || self.over {
            return;
        }
        // Its last word may have been lost with it.
        if self.it.dice.chance(30) {
            self.agenda.retain(|_, act| !matches!(act, Act::Tell(_)));
        }
        self.it.world.step(|| format!("{}: its guard is killed", self.it.name));
        self.tell(GuardEvent::GuardDied(Exit::Signal(SIGKILL)));
        self.guard_dead = true;
        if self.all.iter().any(|one| one.alive) {
            self.killing = false;
            let after = self.it.dice.millis(0, 50);
            self.plan(after, Act::KillAll);
        } else {
            self.close_pipes();
            self.plan(Duration::ZERO, Act::Empty);
        }
    }

    /// Nobody is left, the guard included.
    fn empty(&mut self) {
        self.close_pipes();
        let was_alive = match self.it.world.lock().tree(self.it.mark) {
            Some(tree) => std::mem::replace(&mut tree.alive, false),
            None => false,
        };
        if was_alive {
            self.it.world.step(|| format!("{}: nothing is left", self.it.name));
            self.guard_dead = true;
            self.send_later(GuardEvent::TreeEmpty);
        }
    }

    // ---- the guard's reports ------------------------------------------------------------------------------

    /// A dead guard says nothing but that it is dead; what its sweep finds is still told.
    fn tell(&mut self, event: GuardEvent) {
        if !self.guard_dead || matches!(event, GuardEvent::Stuck { .. }) {
            self.send_later(event);
        }
    }

    /// In order, each after a moment.
    fn send_later(&mut self, event: GuardEvent) {
        let at = (Instant::now() + self.it.dice.millis(0, 3)).max(self.last_tell);
        self.last_tell = at;
        self.next += 1;
        self.agenda.insert((at, self.next), Act::Tell(event));
    }

    fn deliver(&mut self, event: GuardEvent) {
        self.over = event == GuardEvent::TreeEmpty;
        self.it.world.step(|| format!("{}: guard says {event:?}", self.it.name));
        if let Err(mpsc::error::TrySendError::Full(event)) = self.it.events.try_send(event) {
            self.it.world.violate(format!("{}: no room for the report {event:?}", self.it.name));
        }
    }

    // ---- the daemon ---------------------------------------------------------------------------------------

    /// Looks at what the daemon wants and writes. A program that does not run yet is deaf.
    fn look(&mut self) {
        if !self.started || self.over {
            return;
        }
        let orders = Arc::clone(&self.it.orders);
        let terminates = orders.terminates.load(Ordering::Relaxed);
        if terminates > self.terminates && !self.guard_dead {
            self.terminates = terminates;
            self.told_to_end = true;
            self.terminate_all();
        }
        if orders.kill.load(Ordering::Relaxed) && !self.guard_dead {
            self.kill_all();
        }
        if orders.gone.load(Ordering::Relaxed) && !self.told_to_end {
            self.told_to_end = true;
            self.terminate_all();
            self.plan(DAEMON_GONE_GRACE, Act::KillAll);
        }
        while self.reading && self.leader_lives() {
            let Some(line) = self.it.stdin.read_line() else { break };
            self.hear(&line);
        }
        if self.leader_lives() && self.it.stdin.at_end() && !self.end_seen {
            self.end_seen = true;
            if !self.it.dice.chance(self.it.temperament.ignores_eof) {
                let after = self.it.dice.millis(0, 1_000);
                self.plan(after, Act::Die(0, Exit::Code(0)));
            }
        }
    }

    fn hear(&mut self, line: &[u8]) {
        let Ok(message) = serde_json::from_slice::<Value>(line) else {
            let line = String::from_utf8_lossy(line).into_owned();
            self.it.world.violate(format!("{}: was sent what is no message: {line}", self.it.name));
            return;
        };
        let (Some(method), Some(id)) = (message["method"].as_str(), message.get("id")) else { return };
        match method {
            "initialize" if self.it.temperament.modern => {
                let data = json!({"supported": ["2026-07-28"]});
                let error = json!({"code": -32022, "message": "no", "data": data});
                self.answer(json!({"jsonrpc": "2.0", "id": id, "error": error}), 20, false);
            }
            "initialize" => {
                let result = json!({
                    "protocolVersion": "2025-11-25", "capabilities": {},
                    "serverInfo": {"name": "simulated", "version": "1"},
                });
                self.open(id, result);
            }
            "server/discover" if self.it.temperament.modern => {
                self.open(id, json!({"supportedVersions": ["2026-07-28"], "capabilities": {}}));
            }
            "server/discover" => {
                let error = json!({"code": -32601, "message": "Method not found"});
                self.answer(json!({"jsonrpc": "2.0", "id": id, "error": error}), 20, false);
            }
            "tools/list" => {
                self.answer(json!({"jsonrpc": "2.0", "id": id, "result": {"tools": []}}), 20, false)
            }
            "ping" => self.answer(json!({"jsonrpc": "2.0", "id": id, "result": {}}), 20, false),
            _ => self.call(id, &message["params"]),
        }
    }

    fn answer(&mut self, message: Value, most_ms: u64, opens: bool) {
        let after = self.it.dice.millis(0, most_ms);
        self.plan(after, Act::Say(message, opens));
    }

    fn open(&mut self, id: &Value, result: Value) {
        let most = self.it.temperament.handshake_ms;
        if self.mute {
            return;
        }
        if self.dies_early {
            let after = self.it.dice.millis(0, most);
            self.plan(after, Act::Die(0, Exit::Code(1)));
        } else if self.refuses {
            let error = json!({"code": -32603, "message": "not today"});
            self.answer(json!({"jsonrpc": "2.0", "id": id, "error": error}), most, false);
        } else {
            self.answer(json!({"jsonrpc": "2.0", "id": id, "result": result}), most, true);
        }
    }

    /// The answer repeats what was asked, so that the asker can tell it from every other.
    fn call(&mut self, id: &Value, params: &Value) {
        let temper = self.it.temperament.clone();
        if self.it.dice.chance(temper.crashes) {
            let after = self.it.dice.millis(0, temper.call_ms);
            self.plan(after, Act::Die(0, Exit::Signal(6)));
        }
        if self.it.dice.chance(temper.ignores_call) {
            return;
        }
        if self.it.dice.chance(temper.rubbish) {
            self.answer(json!("rubbish"), temper.call_ms, false);
        }
        if self.it.dice.chance(temper.asks_back) {
            let ask = json!({"jsonrpc": "2.0", "id": self.next, "method": "roots/list"});
            self.answer(ask, temper.call_ms, false);
        }
        self.answer(
            json!({"jsonrpc": "2.0", "id": id, "result": {"heard": params["nonce"]}}),
            temper.call_ms,
            false,
        );
    }

    fn say(&mut self, message: &Value, opens: bool) {
        if !self.leader_lives() {
            return;
        }
        if opens && let Some(tree) = self.it.world.lock().tree(self.it.mark) {
            tree.opened = true;
        }
        let mut line = message.to_string();
        line.push('\n');
        self.it.stdout.write(line.as_bytes());
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
