//! Sessions of two principals never meet.

use super::*;

fn table() -> Sessions {
    let keep = Keep { events: 1, bytes: 1 };
    let life = Life {
        idle: Duration::from_secs(60),
        stale: Duration::from_secs(60),
        max_age: Duration::from_secs(60),
    };
    Sessions::new(3, life, keep, Arc::default())
}

#[tokio::test]
async fn a_handle_opens_nothing_for_another_principal() {
    let (sessions, ann, bob) = (table(), Arc::from("ann"), Arc::from("bob"));
    let (made, handle) = sessions.open_with_handle(&ann, true).expect("there is room");
    assert!(is_handle(&handle), "{handle}");
    let (found, is_new) = sessions.find_or_open(&ann, &handle, true).expect("it is hers");
    assert!(Arc::ptr_eq(&found, &made) && !is_new);
    // He is told what he would be told of one that never was: nobody learns which exist.
    let never = format!("{HANDLE}{:032x}", 7);
    let foreign = sessions.find_or_open(&bob, &handle, true).expect_err("it is not his");
    assert_eq!(foreign, sessions.find_or_open(&bob, &never, true).expect_err("it was never made"));
    assert!(sessions.find(&bob, &handle).is_none() && sessions.find(&ann, &handle).is_some());
    assert_eq!(sessions.len(), 1, "nothing was opened by being asked for");
}

#[tokio::test]
async fn a_name_is_another_session_for_each_principal() {
    let (sessions, ann, bob) = (table(), Arc::from("ann"), Arc::from("bob"));
    let (hers, _) = sessions.find_or_open(&ann, "work", true).expect("there is room");
    let (his, is_new) = sessions.find_or_open(&bob, "work", true).expect("there is room");
    assert!(is_new && !Arc::ptr_eq(&hers, &his));
    // No choice of a name leads to another's.
    let crafted = sessions.find("ann\nwork", "").or_else(|| sessions.find("", "ann\nwork"));
    assert!(crafted.is_none_or(|found| !Arc::ptr_eq(&found, &hers)));
}
