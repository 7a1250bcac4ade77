//! What follows from a seed before anything runs: the configuration, and how bad the servers and the system are.

use std::collections::BTreeMap;
use std::time::Duration;

use ostler_config::Config;
use ostler_domain::pool::{OnReturn, PoolSpec};
use ostler_domain::{Concurrency, Probe, RestartPolicy, Scope, ServerSpec, StartMode, Transport};

use crate::dice::Dice;

/// One seed's world.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// What the daemon is told.
    pub config: Config,
    /// How the servers behave, by name.
    pub temperaments: BTreeMap<String, Temperament>,
    /// Clients at once.
    pub clients: u64,
    /// People who start and stop things.
    pub people: u64,
    /// How long clients and people go on.
    pub horizon: Duration,
    /// Whether the end of the horizon is followed by a quiet time, in which what nobody needs must go.
    pub quiet: bool,
    /// Whether nothing goes wrong in this world: then nobody may be refused anything.
    pub kind: bool,
    /// Percent of writes to the ledger that fail.
    pub disk_full: u64,
    /// The longest a job of the ledger takes, in milliseconds.
    pub disk_slow: u64,
    /// Durations that the configuration names: what happens exactly then happens together with a deadline.
    pub moments: Vec<Duration>,
}

/// How the processes of a server behave. Numbers are percent unless their name says otherwise.
#[derive(Clone, Debug, Default)]
pub struct Temperament {
    /// It serves modern clients, and only those.
    pub modern: bool,
    /// No guard can be started (EAGAIN, ENOMEM, EMFILE).
    pub launch_fails: u64,
    /// The guard says that the program cannot be started.
    pub spawn_fails: u64,
    /// The program takes seconds to start.
    pub spawn_hangs: u64,
    /// The guard is killed at some time.
    pub guard_dies: u64,
    /// It never answers the handshake.
    pub mute: u64,
    /// It refuses the handshake.
    pub refuses: u64,
    /// It exits instead of answering the handshake.
    pub dies_early: u64,
    /// The longest handshake, in milliseconds.
    pub handshake_ms: u64,
    /// It ends by itself at some time.
    pub mortal: u64,
    /// Such an end has status 0.
    pub clean: u64,
    /// A call makes it crash.
    pub crashes: u64,
    /// A call is never answered.
    pub ignores_call: u64,
    /// The longest call, in milliseconds.
    pub call_ms: u64,
    /// It does not mind that its input is closed.
    pub ignores_eof: u64,
    /// It, or a descendant, does not mind SIGTERM.
    pub ignores_term: u64,
    /// The kernel holds one of its processes for a while after SIGKILL.
    pub held: u64,
    /// The longest such time, in milliseconds.
    pub held_ms: u64,
    /// Most descendants.
    pub children: u64,
    /// It closes its output, or stops reading, and lives on.
    pub closes: u64,
    /// A line that is no message goes ahead of an answer.
    pub rubbish: u64,
    /// It asks its client something before it answers.
    pub asks_back: u64,
}

const SCOPES: [Scope; 4] = [Scope::Shared, Scope::Principal, Scope::Project, Scope::Session];
const POLICIES: [RestartPolicy; 4] =
    [RestartPolicy::OnFailure, RestartPolicy::OnFailure, RestartPolicy::Always, RestartPolicy::Never];
const CONCURRENCIES: [Concurrency; 3] = [Concurrency::Auto, Concurrency::Serial, Concurrency::Concurrent];

impl Plan {
    /// What this seed stands for.
    pub fn of(seed: u64) -> Self {
        let mut dice = Dice::of(seed, "plan");
        let kind = dice.chance(20);
        let mut config = Config::default();
        let mut temperaments = BTreeMap::<String, Temperament>::new();
        for number in 0..dice.between(1, 4) {
            let name = format!("s{number}");
            temperaments.insert(name.clone(), temperament(&mut dice, kind));
            let spec = server(&mut dice, &name, kind, &config.servers);
            if let Some(it) = temperaments.get_mut(&name).filter(|_| !spec.transport.is_mcp()) {
                // Nobody speaks to it, so that its input is at its end from the beginning.
                it.ignores_eof = 100;
            }
            config.servers.push(spec);
        }
        config.limits.processes = dice.size(6) + 1;
        config.limits.per_type = dice.size(4) + 1;
        config.limits.cleanups = dice.size(4) + 1;
        config.limits.startup = dice.millis(1_000, 60_000);
        config.limits.sessions = dice.size(8) + 1;
        config.limits.session_calls = dice.size(4) + 1;
        config.limits.instance_calls = dice.size(6) + 1;
        config.sessions.idle = dice.millis(500, 60_000);
        if kind {
            config.limits = ostler_config::Config::default().limits;
            config.limits.processes = 1000;
            config.limits.per_type = 1000;
            config.limits.session_instances = 1000;
            config.sessions.idle = Duration::from_secs(600);
        }
        let moments = moments(&config);
        Self {
            seed,
            temperaments,
            clients: dice.between(1, 6),
            people: if kind { 0 } else { dice.below(3) },
            horizon: dice.millis(5_000, 300_000),
            quiet: kind || dice.chance(50),
            kind,
            disk_full: if !kind && dice.chance(15) { dice.between(1, 30) } else { 0 },
            disk_slow: match dice.chance(20) {
                // Several jobs may wait for the disk: with seconds for each, a start in time is a matter of luck.
                true => dice.between(1, if kind { 300 } else { 3_000 }),
                false => dice.below(3),
            },
            moments,
            config,
        }
    }

    /// How long to wait until the next thing: often no time, often exactly as long as something else takes.
    pub fn pause(&self, dice: &mut Dice) -> Duration {
        match dice.below(10) {
            0 => Duration::ZERO,
            1 | 2 => dice.millis(0, 20),
            3 | 4 => *dice.pick(&self.moments),
            5..=7 => dice.millis(0, 2_000),
            _ => dice.millis(0, 30_000),
        }
    }
}

fn moments(config: &Config) -> Vec<Duration> {
    let of_server = |spec: &ServerSpec| {
        let deadlines = spec.deadlines.clone();
        let early = spec.idle.saturating_sub(Duration::from_millis(1));
        [
            early,
            spec.idle,
            spec.restart.backoff_min,
            deadlines.spawn,
            deadlines.handshake,
            deadlines.drain,
            deadlines.stdin_grace,
            deadlines.term_grace,
        ]
    };
    let mut moments: Vec<Duration> = config.servers.iter().flat_map(of_server).collect();
    moments.push(config.sessions.idle);
    moments
}

fn server(dice: &mut Dice, name: &str, kind: bool, earlier: &[ServerSpec]) -> ServerSpec {
    let name = name.parse().unwrap_or_else(|error| unreachable!("{error}"));
    let mut spec = ServerSpec::new(name, "/simulated");
    spec.launch.args = vec![spec.name.to_string()];
    spec.scope = *dice.pick(&SCOPES);
    spec.start = if dice.chance(50) { StartMode::Eager } else { StartMode::OnDemand };
    spec.required = dice.chance(50);
    for other in earlier {
        let chance = dice.below(10);
        if matches!(other.scope, Scope::Session | Scope::Project) {
            // The configuration refuses to wait for what has an instance for each client.
            continue;
        }
        match chance {
            0..=2 => spec.depends_on.push(other.name.clone()),
            3 => spec.wants.push(other.name.clone()),
            _ => {}
        }
    }
    if dice.chance(10) {
        spec.transport = Transport::None;
        // As the configuration has it: there is no connection to ask over.
        spec.health.probe = Probe::None;
    }
    spec.concurrency = *dice.pick(&CONCURRENCIES);
    spec.restart.policy = *dice.pick(&POLICIES);
    spec.restart.max = u32::try_from(dice.below(5)).unwrap_or_default();
    spec.restart.window = dice.millis(1_000, 120_000);
    spec.restart.backoff_min = dice.millis(0, 1_000);
    spec.restart.backoff_max = spec.restart.backoff_min + dice.millis(0, 5_000);
    spec.idle = dice.millis(100, 60_000);
    spec.call_idle = dice.millis(500, 30_000);
    spec.call_max = spec.call_idle + dice.millis(0, 60_000);
    let deadlines = &mut spec.deadlines;
    deadlines.spawn = dice.millis(100, 10_000);
    deadlines.handshake = dice.millis(500, 20_000);
    deadlines.drain = dice.millis(0, 3_000);
    deadlines.stdin_grace = dice.millis(0, 2_000);
    deadlines.term_grace = dice.millis(0, 4_000);
    deadlines.kill = dice.millis(0, 2_000);
    if spec.scope == Scope::Session && dice.chance(60) {
        spec.pool = Some(pool(dice, kind, spec.idle));
    }
    if kind {
        spec.deadlines = ostler_domain::Deadlines::default();
        spec.call_idle = Duration::from_secs(300);
        spec.call_max = Duration::from_secs(3600);
    }
    spec
}

fn pool(dice: &mut Dice, kind: bool, idle: Duration) -> PoolSpec {
    let spare = dice.size(4);
    let seldom = |dice: &mut Dice, most: u64| dice.chance(30).then(|| dice.between(1, most));
    let mut pool = PoolSpec {
        spare,
        max: spare.max(1) + dice.size(4),
        wait: dice.millis(0, 30_000),
        waiting: dice.size(5) + 1,
        on_return: if dice.chance(60) { OnReturn::Restart } else { OnReturn::Reuse },
        max_uses: seldom(dice, 4).and_then(|uses| u32::try_from(uses).ok()),
        // No younger: in hours of quiet that would be nothing but one process after another.
        max_age: dice.chance(30).then(|| dice.millis(60_000, 1_200_000)),
        idle,
        ..PoolSpec::default()
    };
    if kind {
        (pool.max, pool.waiting, pool.wait) = (1000, 1000, Duration::from_secs(600));
    }
    pool
}

fn temperament(dice: &mut Dice, kind: bool) -> Temperament {
    let mut it = Temperament {
        modern: dice.chance(30),
        handshake_ms: dice.between(1, 500),
        call_ms: dice.between(1, 3_000),
        children: dice.below(4),
        ..Temperament::default()
    };
    if kind {
        return it;
    }
    // Each hardship is there or not, so that some servers have one alone.
    let mut hardship = |most: u64| if dice.chance(25) { dice.between(1, most) } else { 0 };
    it.launch_fails = hardship(50);
    it.spawn_fails = hardship(60);
    it.spawn_hangs = hardship(40);
    it.guard_dies = hardship(40);
    it.mute = hardship(40);
    it.refuses = hardship(40);
    it.dies_early = hardship(60);
    it.mortal = hardship(100);
    it.clean = hardship(100);
    it.crashes = hardship(30);
    it.ignores_call = hardship(40);
    it.ignores_eof = hardship(100);
    it.ignores_term = hardship(100);
    it.held = hardship(50);
    it.closes = hardship(40);
    it.rubbish = hardship(50);
    it.asks_back = hardship(50);
    it.held_ms = dice.between(1, 40_000);
    if dice.chance(30) {
        it.handshake_ms = dice.between(1, 25_000);
    }
    if dice.chance(30) {
        it.call_ms = dice.between(1, 60_000);
    }
    it
}
