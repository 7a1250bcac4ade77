//! The event log, read as the story of each instance: every spawn must end in exactly one recorded outcome.

use std::collections::BTreeMap;

use ostler_supervisor::events::Entry;

/// What the event log has said so far.
#[derive(Debug, Default)]
pub(super) struct Chronicle {
    /// The number of the last event read.
    pub(super) read: u64,
    stories: BTreeMap<String, Story>,
}

/// One instance's story.
#[derive(Debug, Default)]
struct Story {
    /// The generation whose outcome is not recorded yet.
    open: Option<Chapter>,
    last: u64,
    /// The last outcome leaves something planned, so that a stop is still worth recording.
    waits: bool,
    /// A restart was asked for, which makes the next start the outcome of the generation before.
    restart_asked: bool,
}

#[derive(Debug, Default)]
struct Chapter {
    generation: u64,
    started: bool,
    ready: bool,
    start_failed: bool,
    exited: bool,
}

impl Chronicle {
    /// Reads one event.
    ///
    /// # Errors
    /// What is wrong with the story it belongs to.
    pub(super) fn read(&mut self, entry: &Entry) -> Result<(), String> {
        self.read = entry.seq;
        let story = self.stories.entry(entry.subject.clone()).or_default();
        let told = match entry.kind {
            "starting" => story.starting(&entry.message),
            "started" => story.within("started", |chapter| &mut chapter.started),
            "ready" => story.within("ready", |chapter| &mut chapter.ready),
            "start-failed" => story.within("failed to start", |chapter| &mut chapter.start_failed),
            "exited" => story.within("exited", |chapter| &mut chapter.exited),
            "restart-asked" => {
                story.restart_asked = true;
                Ok(())
            }
            "restart-scheduled" | "gave-up" | "failed" => story.outcome(true),
            "stopped" => story.outcome(false),
            _ => Ok(()),
        };
        told.map_err(|wrong| {
            format!("the event log of {}: {wrong} (event {}: {})", entry.subject, entry.seq, entry.message)
        })
    }

    /// The instances whose last generation has no outcome.
    pub(super) fn unfinished(&self) -> Vec<String> {
        let open = |(name, story): (&String, &Story)| {
            story.open.as_ref().map(|chapter| format!("{name} g{}", chapter.generation))
        };
        self.stories.iter().filter_map(open).collect()
    }
}

impl Story {
    fn starting(&mut self, message: &str) -> Result<(), String> {
        let digits = message.split(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty());
        let generation: u64 = digits.and_then(|digits| digits.parse().ok()).unwrap_or_default();
        if self.open.is_some() && !self.restart_asked {
            return Err("a generation starts and the one before has no outcome".to_owned());
        }
        if generation != self.last + 1 {
            return Err(format!("generation {generation} follows {}", self.last));
        }
        self.close()?;
        (self.last, self.restart_asked, self.waits) = (generation, false, false);
        self.open = Some(Chapter { generation, ..Chapter::default() });
        Ok(())
    }

    /// Something that happens to a generation at most once.
    fn within(&mut self, what: &str, of: impl FnOnce(&mut Chapter) -> &mut bool) -> Result<(), String> {
        let Some(chapter) = &mut self.open else {
            return Err(format!("{what}, although its outcome was recorded"));
        };
        if std::mem::replace(of(chapter), true) {
            return Err(format!("{what} twice"));
        }
        Ok(())
    }

    fn outcome(&mut self, waits: bool) -> Result<(), String> {
        if self.open.is_none() && !self.waits {
            return Err("a second outcome".to_owned());
        }
        self.close()?;
        self.waits = waits;
        Ok(())
    }

    /// What ran must have been seen to end before it has an outcome.
    fn close(&mut self) -> Result<(), String> {
        match self.open.take() {
            Some(chapter) if chapter.started && !chapter.exited => {
                Err(format!("generation {} ran, and no end of it is recorded", chapter.generation))
            }
            _ => Ok(()),
        }
    }
}
