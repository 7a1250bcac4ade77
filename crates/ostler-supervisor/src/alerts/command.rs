//! `alerts.command`: a program is run for each alert.

use std::collections::BTreeMap;
use std::sync::Arc;

use ostler_config::Alerts as Settings;
use ostler_domain::alert::Notify;

use super::sink::{Failure, Sink, body};
use crate::launch::Launcher;
use crate::program::{Program, Trouble};

/// Runs it behind a guard, like a server.
#[derive(Debug)]
pub(super) struct Command(pub(super) Arc<dyn Launcher>);

impl Sink for Command {
    const NAME: &str = "command";

    fn is_wanted(&self, settings: &Settings) -> bool {
        !settings.command.is_empty()
    }

    async fn tell(&mut self, settings: &Settings, told: &Notify) -> Result<(), Failure> {
        let [program, args @ ..] = settings.command.as_slice() else { return Ok(()) };
        let alert = &told.alert;
        let variables = [
            ("OSTLER_ALERT", body(told).to_string()),
            ("OSTLER_ALERT_STAGE", told.stage.as_str().to_owned()),
            ("OSTLER_ALERT_KIND", alert.kind.as_str().to_owned()),
            ("OSTLER_ALERT_SUBJECT", alert.subject.clone()),
            ("OSTLER_ALERT_SEVERITY", alert.severity.as_str().to_owned()),
            ("OSTLER_ALERT_MESSAGE", alert.message.clone()),
        ];
        let set: BTreeMap<String, String> =
            variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let env = ostler_os::env::clean(&[], &set, std::env::vars_os());
        let program = Program { program: program.clone(), args: args.to_vec(), env, cwd: None };
        program.run(&*self.0).await.map_err(|trouble| match trouble {
            Trouble::NotStarted(why) => Failure::Ever(why),
            Trouble::Ended(why) => Failure::Now(why),
        })
    }
}
