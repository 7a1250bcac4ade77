//! Order: a server starts when what it depends on serves, and stops when nothing that depends on it runs.
//!
//! Every server waits for its own dependencies only, so a start takes the time of the longest path through the
//! graph and a stop that of its reverse. The configuration has no cycle: that is checked when it is read.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::watch;
use futures_util::future::{join, join_all};
use ostler_domain::ServerName;
use ostler_domain::event::Happening;
use tokio::time::{Instant, timeout_at};

use crate::core::Core;
use crate::instance::{Owner, Unavailable};
use crate::server::{Server, Standing};

/// Whose instance of a server is started.
type Owners<'o> = dyn Fn(&Server) -> Owner + Send + Sync + 'o;

/// What a server needs before it can start: its dependencies, and those it would like to have. By name, as they are
/// in force now.
fn needed(core: &Core, server: &Arc<Server>) -> Vec<Arc<Server>> {
    let latest = core.registry.latest(server);
    latest.spec.depends_on.iter().filter_map(|name| core.registry.server(name.as_str())).collect()
}

fn wanted(core: &Core, server: &Arc<Server>) -> Vec<Arc<Server>> {
    let latest = core.registry.latest(server);
    latest.spec.wants.iter().filter_map(|name| core.registry.server(name.as_str())).collect()
}

/// Starts `server` for `owner` as soon as its dependencies serve. A dependency that starts on demand is started
/// too: it is demanded now. What is held up longer than `budget` is told, and waits on. Ends when the server is going
/// for good meanwhile.
pub(crate) async fn start(core: &Arc<Core>, server: &Arc<Server>, owners: &Owners<'_>, budget: Instant) {
    crate::select::select! {
        () = server.until_ending() => {}
        () = start_when_served(core, server, owners, budget) => {}
    }
}

async fn start_when_served(core: &Arc<Core>, server: &Arc<Server>, owners: &Owners<'_>, budget: Instant) {
    loop {
        let waits = wait_for_dependencies(core, server, owners, Some(budget));
        if timeout_at(budget, waits).await.is_err() {
            let why =
                held_by(core, server).unwrap_or_else(|| "its dependencies have just come up".to_owned());
            refused(core, server, format!("it is held up beyond the start-up time (limits.startup): {why}"));
            wait_for_dependencies(core, server, owners, None).await;
        }
        match server.start_eagerly(core, &owners(server)).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => return refused(core, server, error.to_string()),
        }
    }
}

fn refused(core: &Core, server: &Server, why: String) {
    let what = format!("starting `{}`", server.spec.name);
    core.events.record(server.spec.name.as_str(), Happening::Refused { what, why });
}

/// Returns when every dependency serves, and everything wanted serves or has failed, or `budget` is over for it.
async fn wait_for_dependencies(
    core: &Arc<Core>,
    server: &Arc<Server>,
    owners: &Owners<'_>,
    budget: Option<Instant>,
) {
    let _awaiting = server.await_dependencies();
    let mut renewals = core.registry.renewals();
    loop {
        renewals.borrow_and_update();
        crate::select::select! {
            () = wait_for_these(core, server, owners, budget) => return,
            // A reload put others in their places: it is those that count now.
            Ok(()) = renewals.changed() => {}
        }
    }
}

/// The same for the dependencies as they are now.
async fn wait_for_these(
    core: &Arc<Core>,
    server: &Arc<Server>,
    owners: &Owners<'_>,
    budget: Option<Instant>,
) {
    let (needed, wanted) = (needed(core, server), wanted(core, server));
    // What is only wanted does not hold up a start for ever.
    if let Some(budget) = budget {
        let settled = join_all(wanted.iter().map(async |dependency| {
            demand(core, dependency, owners, Some(budget)).await;
            dependency.until(|standing| !standing.is_coming()).await;
        }));
        let demands =
            join_all(needed.iter().map(|dependency| demand(core, dependency, owners, Some(budget))));
        let _ = join(timeout_at(budget, settled), demands).await;
    } else {
        join_all(needed.iter().map(|dependency| demand(core, dependency, owners, None))).await;
    }
    until_all_serve(&needed).await;
}

/// All at the same time: the first may be gone again when the last is there.
async fn until_all_serve(servers: &[Arc<Server>]) {
    while trouble(servers).is_some() {
        join_all(servers.iter().map(|dependency| dependency.until(|standing| standing.serves()))).await;
    }
}

/// Starts the servers of these names for one that is up already and needs them now. What they need themselves is waited for
/// until `budget` at the latest where it is only wanted.
pub(crate) async fn demand_all(core: &Arc<Core>, names: &[ServerName], owners: &Owners<'_>, budget: Instant) {
    let servers: Vec<Arc<Server>> =
        names.iter().filter_map(|name| core.registry.server(name.as_str())).collect();
    join_all(servers.iter().map(|server| demand(core, server, owners, Some(budget)))).await;
}

/// Starts a dependency, unless a person stopped it, after what it depends on itself. One that is there for its own
/// clients is kept from now on, whether or not they go on using it.
fn demand<'a>(
    core: &'a Arc<Core>,
    dependency: &'a Arc<Server>,
    owners: &'a Owners<'a>,
    budget: Option<Instant>,
) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
    Box::pin(async move {
        if dependency.spec.is_eager() || dependency.stopped() {
            return;
        }
        loop {
            wait_for_dependencies(core, dependency, owners, budget).await;
            if dependency.stopped() {
                return;
            }
            match dependency.start_eagerly(core, &owners(dependency)).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => return refused(core, dependency, error.to_string()),
            }
        }
    })
}

/// The dependencies that do not serve, and why; `None` when all do.
pub(crate) fn held_by(core: &Core, server: &Arc<Server>) -> Option<String> {
    trouble(&needed(core, server))
}

fn trouble(servers: &[Arc<Server>]) -> Option<String> {
    let reasons: Vec<String> = servers
        .iter()
        .filter_map(|dependency| {
            let standing = dependency.standing();
            (!standing.serves()).then(|| format!("it needs `{}`, which is {standing}", dependency.spec.name))
        })
        .collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// Waits until the dependencies of a server that a client asks for serve, and starts those that start on demand.
///
/// # Errors
/// [`Unavailable::Held`] when they do not within `patience`, with the reasons.
pub(crate) async fn for_client(
    core: &Arc<Core>,
    server: &Arc<Server>,
    owners: &Owners<'_>,
    patience: Duration,
) -> Result<(), Unavailable> {
    let deadline = Instant::now() + patience;
    in_time(core, server, deadline, wait_for_dependencies(core, server, owners, Some(deadline))).await
}

/// Waits until the dependencies of a server serve, of which an instance is started for nobody yet. Whoever asked for the
/// server first has demanded them.
///
/// # Errors
/// [`Unavailable::Held`] when they do not within `patience`, with the reasons.
pub(crate) async fn for_spare(
    core: &Arc<Core>,
    server: &Arc<Server>,
    patience: Duration,
) -> Result<(), Unavailable> {
    let waits = async {
        let mut renewals = core.registry.renewals();
        loop {
            renewals.borrow_and_update();
            let needed = needed(core, server);
            crate::select::select! {
                () = until_all_serve(&needed) => return,
                Ok(()) = renewals.changed() => {}
            }
        }
    };
    in_time(core, server, Instant::now() + patience, waits).await
}

async fn in_time(
    core: &Core,
    server: &Arc<Server>,
    deadline: Instant,
    waits: impl Future<Output = ()>,
) -> Result<(), Unavailable> {
    if timeout_at(deadline, waits).await.is_ok() {
        return Ok(());
    }
    match held_by(core, server) {
        Some(why) => Err(Unavailable::Held { server: server.spec.name.clone(), why }),
        None => Ok(()),
    }
}

/// Has a task follow the dependencies of a server, where it has any and none does yet.
pub(crate) fn follow_dependencies(core: &Arc<Core>, server: &Arc<Server>) {
    let none = server.spec.depends_on.is_empty() && server.spec.wants.is_empty();
    if !none && server.same_as().is_none() && server.begin_following() {
        tokio::spawn(watch_dependencies(Arc::clone(core), Arc::clone(server)));
    }
}

/// Tells a server of what is wrong with its dependencies, now and whenever that changes. Ends with the server.
async fn watch_dependencies(core: Arc<Core>, server: Arc<Server>) {
    let mut renewals = core.registry.renewals();
    loop {
        renewals.borrow_and_update();
        let mut dependencies = needed(&core, &server);
        dependencies.extend(wanted(&core, &server));
        crate::select::select! {
            () = server.until_ending() => return,
            () = tell_trouble(&server, &dependencies) => {}
            Ok(()) = renewals.changed() => {}
        }
    }
}

/// The same while these are its dependencies. Ends when one of them does.
async fn tell_trouble(server: &Server, dependencies: &[Arc<Server>]) {
    let mut standings: Vec<watch::Receiver<Standing>> =
        dependencies.iter().map(|dependency| dependency.watch()).collect();
    loop {
        standings.iter_mut().for_each(|standing| drop(standing.borrow_and_update()));
        server.set_trouble(trouble(dependencies));
        if standings.is_empty() {
            return std::future::pending().await;
        }
        let changes = standings.iter_mut().map(|standing| Box::pin(standing.changed()));
        let (first, ..) = futures_util::future::select_all(changes).await;
        if first.is_err() {
            return;
        }
    }
}

/// Stops every server, each as soon as nothing that depends on it runs; returns when none runs.
pub(crate) async fn stop_all(servers: &[Arc<Server>], reason: &str) {
    in_reverse(servers, servers, |server| async move { server.remove_all(reason).await }).await;
}

/// Does something with each of these servers as soon as it is done with those that depend on it, by any of the names
/// that they have among those `named`.
pub(crate) async fn in_reverse<F: Future<Output = ()>>(
    servers: &[Arc<Server>],
    named: &[Arc<Server>],
    act: impl Fn(Arc<Server>) -> F,
) {
    let (done, _) = watch::channel(vec![false; servers.len()]);
    let depends = |dependant: &Server, on: &Server| {
        // Those that a reload took out depended on each other; what came in their places may do so the other way round.
        !(dependant.spec.depends_on.is_empty() && dependant.spec.wants.is_empty())
            && dependant.has_left() == on.has_left()
            && names(named, on).any(|name| needs(dependant, name))
    };
    let acts = servers.iter().enumerate().map(|(index, server)| {
        let dependants: Vec<usize> =
            (0..servers.len()).filter(|&other| depends(&servers[other], server)).collect();
        let (done, mut finished, acting) = (&done, done.subscribe(), act(Arc::clone(server)));
        async move {
            let free = finished.wait_for(|done| dependants.iter().all(|&other| done[other]));
            // The sender lives in this function.
            let _ = free.await;
            acting.await;
            done.send_modify(|done| done[index] = true);
        }
    });
    join_all(acts).await;
}

/// All names of a server.
pub(crate) fn names<'a>(servers: &'a [Arc<Server>], of: &'a Server) -> impl Iterator<Item = &'a ServerName> {
    servers.iter().filter(|named| named.is_same(of)).map(|named| &named.spec.name)
}

/// Whether a server is to be stopped before the one of this name.
pub(crate) fn needs(dependant: &Server, name: &ServerName) -> bool {
    dependant.spec.depends_on.contains(name) || dependant.spec.wants.contains(name)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use ostler_domain::{ServerSpec, Traits};

    fn spec(name: &str, needs: &[&str]) -> ServerSpec {
        let mut spec = ServerSpec::new(name.parse().expect("a name"), name);
        spec.depends_on = needs.iter().map(|name| name.parse().expect("a name")).collect();
        spec
    }

    fn server(name: &str, needs: &[&str]) -> Arc<Server> {
        Server::new(spec(name, needs), Traits::default(), Arc::default())
    }

    /// In which order they have their turn; it has an end at once.
    async fn order(servers: &[Arc<Server>], named: &[Arc<Server>]) -> Vec<String> {
        let order = Mutex::new(Vec::new());
        let turns = in_reverse(servers, named, |server| {
            let order = &order;
            async move { order.lock().expect("nobody panics").push(server.spec.name.to_string()) }
        });
        // No time passes but when everybody waits.
        tokio::time::timeout(Duration::from_secs(1), turns).await.expect("nobody waits in a circle");
        order.into_inner().expect("nobody panics")
    }

    #[tokio::test(start_paused = true)]
    async fn what_depends_on_a_server_by_any_of_its_names_goes_first() {
        let one = server("one", &[]);
        let two = Server::alias(&one, spec("two", &[]));
        let all = [Arc::clone(&one), two, server("user", &["two"])];
        // The other name may be one that nothing is done with.
        for servers in [&all[..], &[Arc::clone(&all[0]), Arc::clone(&all[2])]] {
            let order = order(servers, &all).await;
            let at = |name: &str| order.iter().position(|known| known == name);
            assert!(at("user") < at("one"), "{order:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_before_a_reload_and_those_after_it_do_not_wait_for_each_other() {
        let before = [server("a", &["b"]), server("b", &[])];
        before.iter().for_each(|server| server.leave());
        let all = [&before[..], &[server("a", &[]), server("b", &["a"])]].concat();
        assert_eq!(order(&all, &all).await.len(), 4);
    }
}
