//! Servers that wait for each other.

/// A cycle among nodes that wait for each other, `edges[n]` being those that `n` waits for: each waits for the
/// next, and the last for the first. `None` where there is none.
///
/// The cycle found is the same for the same edges, and starts with the lowest node it has.
///
/// # Panics
///
/// Where an edge leads to a node that `edges` does not have.
pub fn find_cycle(edges: &[Vec<usize>]) -> Option<Vec<usize>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        OnPath,
        Done,
    }
    let mut marks = vec![Mark::New; edges.len()];
    for root in 0..edges.len() {
        if marks[root] != Mark::New {
            continue;
        }
        // The path from the root, with the next edge to follow at each step: a list and not a recursion, as a
        // chain may be as long as a configuration.
        let mut path = vec![(root, 0)];
        marks[root] = Mark::OnPath;
        while let Some((node, edge)) = path.last_mut() {
            let Some(next) = edges[*node].get(*edge).copied() else {
                marks[*node] = Mark::Done;
                path.pop();
                continue;
            };
            *edge += 1;
            match marks[next] {
                Mark::Done => {}
                Mark::New => {
                    marks[next] = Mark::OnPath;
                    path.push((next, 0));
                }
                Mark::OnPath => {
                    let from = path.iter().position(|(n, _)| *n == next).unwrap_or_default();
                    let mut cycle: Vec<usize> = path[from..].iter().map(|(n, _)| *n).collect();
                    let lowest = (0..cycle.len()).min_by_key(|i| cycle[*i]).unwrap_or_default();
                    cycle.rotate_left(lowest);
                    return Some(cycle);
                }
            }
        }
    }
    None
}
