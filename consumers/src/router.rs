//! Which handler answers which command. Pure: finds, never calls.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use twilight_model::application::interaction::Interaction;

use crate::commands::Definition;
use crate::context::Context;
use crate::events::Events;
use crate::interaction::Key;
use crate::messages::MessageHandler;
use crate::response::Response;
use crate::singleton::Singleton;

/// Why a handler could not answer; the user sees a plain apology, the log sees this.
pub type HandlerError = Box<dyn Error + Send + Sync>;

/// What [`Handler::handle`] returns.
pub type HandlerFuture = Pin<Box<dyn Future<Output = Result<Response, HandlerError>> + Send>>;

/// Answers one kind of interaction. Implemented by every
/// `async fn(Context, Interaction) -> Result<Response, HandlerError>`.
///
/// A handler runs at least once per interaction and may run again after a crash or a lost
/// connection; [`Context::message_id`] tells repetitions. It has until shortly before the end of
/// Discord's 3 seconds; then it is dropped.
pub trait Handler: Send + Sync + 'static {
    /// Starts answering.
    fn handle(&self, context: Context, interaction: Interaction) -> HandlerFuture;
}

impl<F, Fut> Handler for F
where
    F: Fn(Context, Interaction) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Response, HandlerError>> + Send + 'static,
{
    fn handle(&self, context: Context, interaction: Interaction) -> HandlerFuture {
        Box::pin(self(context, interaction))
    }
}

/// Commands and events with their handlers.
#[derive(Clone, Default)]
pub struct Router {
    pub(crate) events: Vec<Events>,
    /// By topic.
    pub(crate) broadcasts: BTreeMap<String, Arc<dyn MessageHandler>>,
    /// By name.
    pub(crate) singletons: BTreeMap<String, Singleton>,
    /// By type and name: Discord allows one name once per type of command.
    definitions: BTreeMap<(u8, String), Definition>,
    handlers: BTreeMap<Key, Arc<dyn Handler>>,
}

impl Router {
    /// A router without commands.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a command. It is registered with Discord when a worker starts.
    ///
    /// # Panics
    /// When a command of this type and name is there already: two handlers for one command are a
    /// mistake in the program.
    #[must_use]
    pub fn command(mut self, definition: Definition, handler: impl Handler) -> Self {
        let (kind, name) = (definition.kind().into(), definition.name().to_owned());
        self.definitions.insert((kind, name.clone()), definition);
        self.handle(Key::Command(kind, name), handler)
    }

    /// Suggests values for an option of a slash command, while the user types. The option needs
    /// `autocomplete`; answer with [`Response::choices`].
    ///
    /// # Panics
    /// When the command has such a handler already: that is a mistake in the program.
    #[must_use]
    pub fn autocomplete(self, command: impl Into<String>, handler: impl Handler) -> Self {
        self.handle(Key::Autocomplete(command.into()), handler)
    }

    /// Answers buttons and menus. `name` is the component's `custom_id`, or what stands before its
    /// first colon: the rest can say which page, user or choice is meant.
    ///
    /// # Panics
    /// When the name has a handler already, or a colon: those are mistakes in the program.
    #[must_use]
    pub fn component(self, name: impl Into<String>, handler: impl Handler) -> Self {
        self.handle(Key::Component(plain(name.into())), handler)
    }

    /// Answers forms that were submitted; `name` as for [`Router::component`].
    ///
    /// # Panics
    /// As [`Router::component`].
    #[must_use]
    pub fn modal(self, name: impl Into<String>, handler: impl Handler) -> Self {
        self.handle(Key::Modal(plain(name.into())), handler)
    }

    fn handle(mut self, key: Key, handler: impl Handler) -> Self {
        let taken = self.handlers.contains_key(&key);
        assert!(!taken, "{key:?} is added twice");
        self.handlers.insert(key, Arc::new(handler));
        self
    }

    /// Adds events, which come from a durable consumer of their own: interactions never wait for
    /// them. A router may have several, of either mode, with different names.
    ///
    /// # Panics
    /// When there are events of this name already: two sets of handlers would take each other's.
    #[must_use]
    pub fn events(mut self, events: Events) -> Self {
        let taken = self.events.iter().any(|other| other.name == events.name);
        assert!(!taken, "the events {:?} are added twice", events.name);
        self.events.push(events);
        self
    }

    /// Listens to the broadcasts of a topic: words with dots between them. Every worker with a
    /// handler for it hears each one.
    ///
    /// ```
    /// use consumers::{HandlerError, Message, Router, WorkerContext};
    ///
    /// async fn forget(_: WorkerContext, message: Message) -> Result<(), HandlerError> {
    ///     tracing::info!(bytes = message.payload.len(), "something has changed");
    ///     Ok(())
    /// }
    ///
    /// async fn uptime(context: WorkerContext, _: Message) -> Result<String, HandlerError> {
    ///     Ok(format!("{:?}", context.worker().uptime()))
    /// }
    ///
    /// let router = Router::new().on_broadcast("cache.forget", forget).on_broadcast("uptime", uptime);
    /// ```
    ///
    /// # Panics
    /// When the topic has a handler already: that is a mistake in the program.
    #[must_use]
    pub fn on_broadcast(mut self, topic: impl Into<String>, handler: impl MessageHandler) -> Self {
        let topic = topic.into();
        let taken = self.broadcasts.contains_key(&topic);
        assert!(!taken, "the topic {topic:?} is handled twice");
        self.broadcasts.insert(topic, Arc::new(handler));
        self
    }

    /// Adds a task that exactly one of the workers which have it runs at a time.
    ///
    /// # Panics
    /// When there is one of this name already: that is a mistake in the program.
    #[must_use]
    pub fn singleton(mut self, singleton: Singleton) -> Self {
        let name = singleton.name.clone();
        let taken = self.singletons.contains_key(&name);
        assert!(!taken, "the singleton {name:?} is added twice");
        self.singletons.insert(name, singleton);
        self
    }

    /// What the commands look like to Discord.
    pub fn definitions(&self) -> impl Iterator<Item = &Definition> {
        self.definitions.values()
    }

    /// Whether a worker answers interactions: with commands of its own, or with nothing else to do.
    /// Without commands it would take interactions from those who have some.
    pub(crate) fn answers_interactions(&self) -> bool {
        let others =
            !(self.events.is_empty() && self.broadcasts.is_empty() && self.singletons.is_empty());
        !self.handlers.is_empty() || !others
    }

    /// The handler of what an interaction asks for.
    pub(crate) fn route(&self, interaction: &Interaction) -> Option<Arc<dyn Handler>> {
        self.handlers.get(&Key::of(interaction)?).cloned()
    }
}

/// A name that can be told from what follows it.
fn plain(name: String) -> String {
    assert!(!name.contains(':'), "{name:?} has a colon");
    name
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router")
            .field("interactions", &self.handlers.keys())
            .field("events", &self.events)
            .field("broadcasts", &self.broadcasts.keys())
            .field("singletons", &self.singletons.keys())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use twilight_model::application::command::CommandType;

    use super::*;
    use crate::interaction::InteractionEvent;

    const SLASH: &str = include_str!("../tests/fixtures/INTERACTION_CREATE.json");
    const COMPONENT: &str = include_str!("../tests/fixtures/INTERACTION_CREATE.component.json");
    const MODAL: &str = include_str!("../tests/fixtures/INTERACTION_CREATE.modal.json");
    const AUTOCOMPLETE: &str =
        include_str!("../tests/fixtures/INTERACTION_CREATE.autocomplete.json");

    async fn answer(_: Context, _: Interaction) -> Result<Response, HandlerError> {
        Ok(Response::text("ok"))
    }

    fn interaction(frame: &str) -> Interaction {
        InteractionEvent::decode(Bytes::copy_from_slice(frame.as_bytes()))
            .unwrap()
            .interaction
    }

    fn check(name: &str, frame: &str, found: bool) {
        let router = Router::new().command(Definition::chat_input(name, "Something"), answer);
        assert_eq!(router.route(&interaction(frame)).is_some(), found, "{name}");
    }

    #[test]
    fn a_command_is_found_by_its_name() {
        check("shieli", SLASH, true);
        check("other", SLASH, false);
    }

    #[test]
    fn a_message_command_of_the_same_name_is_another_command() {
        let definition = Definition::context_menu("shieli", CommandType::Message);
        let router = Router::new().command(definition, answer);
        assert!(router.route(&interaction(SLASH)).is_none());
        let router = router.command(Definition::chat_input("shieli", "Something"), answer);
        assert!(router.route(&interaction(SLASH)).is_some());
        assert_eq!(router.definitions().count(), 2);
    }

    #[test]
    fn components_and_autocomplete_are_no_commands_and_have_handlers_of_their_own() {
        check("page", COMPONENT, false);
        check("elidro", AUTOCOMPLETE, false);
        let router = Router::new().component("page", answer);
        assert!(router.route(&interaction(COMPONENT)).is_some());
        let router = router.autocomplete("elidro", answer);
        assert!(router.route(&interaction(AUTOCOMPLETE)).is_some());
        assert!(router.route(&interaction(MODAL)).is_none());
        assert!(
            router
                .modal("modal", answer)
                .route(&interaction(MODAL))
                .is_some()
        );
    }

    #[test]
    #[should_panic(expected = "has a colon")]
    fn a_component_whose_name_could_never_match_is_a_mistake_of_the_program() {
        drop(Router::new().component("page:1", answer));
    }

    #[test]
    #[should_panic(expected = "added twice")]
    fn a_command_added_twice_is_a_mistake_of_the_program() {
        let ping = || Definition::chat_input("ping", "Pong");
        drop(
            Router::new()
                .command(ping(), answer)
                .command(ping(), answer),
        );
    }
}
