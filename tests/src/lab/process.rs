//! What a process costs, read from /proc: memory, processor time, wake-ups,
//! descriptors. For a tree: tunneld's processes, without the program it runs.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// One reading, summed over processes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Resident memory, KiB.
    pub rss_kib: u64,
    /// The highest resident memory so far, KiB.
    pub peak_kib: u64,
    /// User and system time, seconds.
    pub cpu_seconds: f64,
    /// Times a thread was put to sleep of its own will: one a wake-up.
    pub wakeups: u64,
    /// Open descriptors.
    pub descriptors: u64,
}

/// The processes of the tree under `root` (itself included) that run `exe`.
pub fn tree(root: u32, exe: &Path) -> Vec<u32> {
    // Staged for another uid a binary has another path, never another name.
    descendants(root)
        .into_iter()
        .filter(|pid| {
            let runs = fs::read_link(format!("/proc/{pid}/exe")).ok();
            runs.as_deref().and_then(Path::file_name) == exe.file_name()
        })
        .collect()
}

/// A process and all below it.
pub fn descendants(root: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        let Some((pid, parent)) = pid.and_then(|pid| Some((pid, parent_of(pid)?))) else {
            continue;
        };
        children.entry(parent).or_default().push(pid);
    }
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        found.extend(children.remove(&found[next]).unwrap_or_default());
        next += 1;
    }
    found
}

/// The cost of these processes now; one that has ended counts nothing.
pub fn cost(pids: &[u32]) -> Cost {
    let mut sum = Cost::default();
    for &pid in pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        sum.rss_kib += field(&status, "VmRSS:");
        sum.peak_kib += field(&status, "VmHWM:");
        sum.cpu_seconds += cpu_seconds(pid);
        sum.descriptors +=
            fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |fds| fds.count() as u64);
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            sum.wakeups += field(&status, "voluntary_ctxt_switches:");
        }
    }
    sum
}

/// Whether a process exists and is no zombie.
pub fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| after_name(&stat).map(|rest| !rest.starts_with(['Z', 'X'])))
        .unwrap_or(false)
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    after_name(&stat)?.split_whitespace().nth(1)?.parse().ok()
}

/// /proc/PID/stat past the name, which may hold spaces and parentheses.
fn after_name(stat: &str) -> Option<&str> {
    stat.rsplit_once(") ").map(|(_, rest)| rest)
}

fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some(rest) = after_name(&stat) else {
        return 0.0;
    };
    // Fields 14 and 15 of proc(5), counted from the state, which is field 3.
    let ticks: u64 =
        rest.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
    // SAFETY: sysconf(3) takes an integer.
    ticks as f64 / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
}

fn field(status: &str, name: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
