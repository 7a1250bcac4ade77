//! What is used, and of how much: the monitor's readings as the API shows them.

use ostler_api::{GaugeView, LimitView, UsageView};
use ostler_domain::ResourceLimits;
use ostler_os::Rungs;
use ostler_supervisor::Reading;
use ostler_supervisor::clock::now_ms;
use ostler_supervisor::monitor::{Measured, Overview};

/// What all instances use.
pub(super) fn all(overview: &Overview) -> UsageView {
    UsageView {
        measured_ago_ms: (overview.at_ms > 0).then(|| now_ms().saturating_sub(overview.at_ms)),
        instances: overview.trees,
        processes: overview.processes,
        threads: overview.threads,
        memory_bytes: overview.memory_bytes,
        cpu_percent: (overview.cpu_percent * 10.0).round() / 10.0,
        machine_bytes: overview.machine.map(|memory| memory.total_bytes),
        machine_available_bytes: overview.machine.map(|memory| memory.available_bytes),
        stall_percent: overview.stall.map(|stall| stall.some_avg10),
    }
}

/// One gauge.
pub(super) fn gauge(measured: &Measured) -> GaugeView {
    GaugeView {
        name: measured.name.clone(),
        used: measured.used,
        limit: measured.limit,
        unit: measured.unit.to_owned(),
        level: measured.level.as_str().to_owned(),
    }
}

/// The limits of an instance that were set, with what it used when it was last measured.
pub(super) fn limits(limits: &ResourceLimits, reading: Option<&Reading>, rungs: &Rungs) -> Vec<LimitView> {
    let view = |resource: &str, limit: f64, used: Option<f64>, unit: &str, rung: ostler_os::Rung| LimitView {
        resource: resource.to_owned(),
        limit,
        used,
        unit: unit.to_owned(),
        rung: rung.to_string(),
    };
    let memory = |limit: u64| {
        // What the kernel has counted is what the kernel compares.
        let used = reading.map(|reading| reading.kernel.memory_bytes.unwrap_or(reading.memory_bytes()));
        view("memory", limit as f64, used.map(|bytes| bytes as f64), "bytes", rungs.memory)
    };
    let cpu = |limit: f64| {
        let used = reading.map(|reading| reading.cpu_percent / 100.0);
        view("cpu", limit, used, "cores", rungs.cpu)
    };
    let pids = |limit: u32| {
        let used = reading.map(|reading| reading.kernel.pids.unwrap_or(u64::from(reading.threads)));
        view("pids", f64::from(limit), used.map(|n| n as f64), "processes and threads", rungs.pids)
    };
    let files = |limit: u32| {
        let used = reading.and_then(|reading| reading.fds).map(|fds| fds.of_one as f64);
        view("open_files", f64::from(limit), used, "files of one process", rungs.open_files)
    };
    let nice = |limit: i8| view("nice", f64::from(limit), None, "", rungs.nice);
    let set = [
        limits.memory.map(memory),
        limits.cpu.map(cpu),
        limits.pids.map(pids),
        limits.open_files.map(files),
        limits.nice.map(nice),
    ];
    set.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use ostler_supervisor::monitor::Fds;

    use super::*;

    #[test]
    fn limits_are_shown_with_what_the_kernel_counts_where_it_counts() {
        let wanted = ResourceLimits {
            memory: Some(100),
            cpu: Some(0.5),
            pids: Some(9),
            open_files: Some(64),
            nice: Some(-5),
            ..ResourceLimits::default()
        };
        let kernel = ostler_os::Readings { memory_bytes: Some(40), ..ostler_os::Readings::default() };
        let fds = Some(Fds { all: 30, of_one: 20, at_cpu_ms: 0 });
        let reading =
            Reading { rss_bytes: 70, threads: 3, cpu_percent: 25.0, fds, kernel, ..Reading::default() };
        let rungs = ostler_os::limits::rungs();
        let views = limits(&wanted, Some(&reading), &rungs);
        let used: Vec<_> = views.iter().map(|view| (view.resource.as_str(), view.limit, view.used)).collect();
        let expected = [
            ("memory", 100.0, Some(40.0)),
            ("cpu", 0.5, Some(0.25)),
            ("pids", 9.0, Some(3.0)),
            ("open_files", 64.0, Some(20.0)),
            ("nice", -5.0, None),
        ];
        assert_eq!(used, expected);
        assert_eq!(views[3].rung, "rlimit");
        assert_eq!(limits(&ResourceLimits::default(), Some(&reading), &rungs), []);
        assert!(limits(&wanted, None, &rungs).iter().all(|view| view.used.is_none()), "nothing was measured");
    }
}
