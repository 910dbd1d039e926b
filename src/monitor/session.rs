//! One user's conversation with the machine.

use std::sync::mpsc;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use super::editor::{Edit, Editor};
use super::keyboard::{Key, Keyboard};
use super::screen::{Audience, Screen};
use crate::debug::Machine;
use crate::debug::commands::{self, Context, Effect, Needs};
use crate::debug::inbox::{Event, Inbox, Question};
use crate::vm::{Quit, Request};

/// Where sessions have their commands done.
#[derive(Clone)]
pub(crate) struct Office {
    /// Where the machine's owner finds them.
    pub(crate) inbox: Arc<Inbox>,
    /// The machine, which ends before its sessions may.
    pub(crate) machine: Weak<Machine>,
    /// Who hears of stops.
    pub(crate) audience: Arc<Audience>,
}

impl Office {
    /// Has `line` done. What to show, and the context; none if the machine has ended.
    fn ask(&self, line: String, mut context: Context) -> Option<(String, Context)> {
        if commands::needs(&line) == Needs::Pause {
            let (reply, answer) = mpsc::channel();
            self.inbox.put(Event::Asked(Box::new(Question { line, context, reply })));
            let answered = answer.recv().ok()?;
            return Some((answered.text, answered.context));
        }
        let machine = self.machine.upgrade()?;
        let text = match commands::run(&machine, &mut context, &line) {
            Ok(Effect::Reply(view)) => view.to_string(),
            Ok(Effect::Quit) => {
                machine.board().control.request(Request::Quit(Quit::User));
                String::new()
            }
            // Those need the machine to pause.
            Ok(Effect::Run(_)) => String::new(),
            Err(error) => format!("{error}\n"),
        };
        Some((text, context))
    }
}

/// The first line.
const GREETING: &str =
    concat!("\nVolvelle ", env!("CARGO_PKG_VERSION"), " monitor - `help` lists the commands\n");

/// What the end of input does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    GoOn,
    Leave,
}

/// Starts a session on a thread of its own. It ends with the keyboard, or, unless `on_end` keeps it
/// by saying true, by Ctrl-D.
pub(crate) fn start(
    office: Office,
    keyboard: Arc<Keyboard>,
    screen: Arc<Screen>,
    on_end: impl Fn() -> bool + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    office.audience.join(&screen);
    let inbox = Arc::clone(&office.inbox);
    keyboard.on_interrupt(Box::new(move || inbox.put(Event::Interrupted)));
    let mut session =
        Session { office, keyboard, screen, editor: Editor::default(), is_known: false };
    std::thread::Builder::new().name("monitor".into()).spawn(move || session.run(on_end))
}

struct Session {
    office: Office,
    keyboard: Arc<Keyboard>,
    screen: Arc<Screen>,
    editor: Editor,
    /// The user was greeted.
    is_known: bool,
}

impl Session {
    fn run(&mut self, on_end: impl Fn() -> bool) {
        let mut context = Context::default();
        while let Some(key) = self.keyboard.next() {
            let byte = match key {
                Key::Byte(byte) => byte,
                Key::Entered => {
                    self.enter();
                    continue;
                }
                Key::Left => {
                    self.screen.leave();
                    self.screen.write(b"\n");
                    continue;
                }
            };
            let edit = self.editor.take(byte);
            // What is typed behind the newline is the guest's.
            let stays = edit != Edit::End || on_end();
            self.screen.echo(&edit.echo(), self.editor.line());
            let next = match edit {
                Edit::Line(line) => self.execute(line, &mut context),
                Edit::Dropped => {
                    self.screen.prompt("");
                    Next::GoOn
                }
                Edit::Redraw => {
                    self.screen.redraw(self.editor.line());
                    Next::GoOn
                }
                Edit::End => {
                    self.screen.leave();
                    if stays { Next::GoOn } else { Next::Leave }
                }
                Edit::Nothing | Edit::Change(..) | Edit::Full => Next::GoOn,
            };
            if next == Next::Leave {
                break;
            }
        }
        self.keyboard.close();
    }

    fn execute(&mut self, line: String, context: &mut Context) -> Next {
        self.screen.wait();
        if let Some(stopped) = self.screen.take_stopped() {
            context.cpu = stopped;
        }
        if !line.trim().is_empty() {
            let asked = std::mem::take(context);
            let office = &self.office;
            let answer = self.keyboard.while_busy(|| office.ask(line, asked));
            let Some((text, kept)) = answer else { return Next::Leave };
            *context = kept;
            self.screen.write(text.as_bytes());
        }
        self.screen.prompt("");
        Next::GoOn
    }

    /// The user is here, perhaps again, behind whatever else stands on the screen.
    fn enter(&mut self) {
        if !std::mem::replace(&mut self.is_known, true) {
            self.screen.write(GREETING.as_bytes());
        } else {
            self.screen.write(b"\n");
        }
        self.screen.prompt(self.editor.line());
    }
}
