//! The flags of a worker as text, with their help.

/// The flags of a worker, unread; flatten them into a command line of your own with
/// `#[command(flatten)]`. Environment variables are read by
/// [`Config::from_options`](super::Config::from_options).
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// File that holds the bot's token [env: DISCORD_TOKEN_FILE, then DISCORD_TOKEN]
    #[arg(long, value_name = "PATH", help_heading = "Discord")]
    pub token_file: Option<String>,
    /// Discord's REST API, or a proxy for it; ends in /api/v10 [env: DISCORD_API_URL]
    /// [default: Discord's own]
    #[arg(long, value_name = "URL", help_heading = "Discord")]
    pub api_url: Option<String>,
    /// REST requests per second of all workers of the bot together, or `off` when a REST proxy
    /// counts them [env: REST_BUDGET] [default: 50]
    #[arg(long, value_name = "N|off", help_heading = "Discord")]
    pub rest_budget: Option<String>,

    /// NATS servers separated by commas [env: NATS_URL] [default: nats://127.0.0.1:4222]
    #[arg(long, value_name = "URLS", help_heading = "NATS")]
    pub nats_url: Option<String>,
    /// Credentials file with user JWT and seed [env: NATS_CREDS]
    #[arg(long, value_name = "PATH", help_heading = "NATS")]
    pub nats_creds: Option<String>,
    /// File with the seed of a user nkey [env: NATS_NKEY]
    #[arg(long, value_name = "PATH", help_heading = "NATS")]
    pub nats_nkey: Option<String>,
    /// User name; the password comes from NATS_PASSWORD or a file [env: NATS_USER]
    #[arg(long, value_name = "NAME", help_heading = "NATS")]
    pub nats_user: Option<String>,
    /// File that holds the password [env: NATS_PASSWORD_FILE]
    #[arg(long, value_name = "PATH", help_heading = "NATS")]
    pub nats_password_file: Option<String>,
    /// File that holds the authentication token [env: NATS_TOKEN_FILE, then NATS_TOKEN]
    #[arg(long, value_name = "PATH", help_heading = "NATS")]
    pub nats_token_file: Option<String>,
    /// Certificates (PEM) trusted in place of the public ones [env: NATS_CA]
    #[arg(long, value_name = "PATH", help_heading = "NATS")]
    pub nats_ca: Option<String>,
    /// Client certificate (PEM) [env: NATS_CERT]
    #[arg(long, value_name = "PATH", help_heading = "NATS")]
    pub nats_cert: Option<String>,
    /// Private key (PEM) of the client certificate [env: NATS_KEY]
    #[arg(long, value_name = "PATH", help_heading = "NATS")]
    pub nats_key: Option<String>,

    /// First token of every subject, as at the proxy [env: SUBJECT_PREFIX] [default: discord]
    #[arg(long, value_name = "PREFIX", help_heading = "Events")]
    pub subject_prefix: Option<String>,
    /// Streams the shards are spread over, as at the proxy [env: EVENT_STREAMS] [default: 1]
    #[arg(long, value_name = "K", help_heading = "Events")]
    pub event_streams: Option<String>,
    /// Durable consumer; workers with the same one share its events [env: CONSUMER_NAME]
    /// [default: commands]
    #[arg(long, value_name = "NAME", help_heading = "Events")]
    pub consumer: Option<String>,
    /// Interactions this worker handles at once [env: CONCURRENCY] [default: 64]
    #[arg(long, value_name = "N", help_heading = "Events")]
    pub concurrency: Option<String>,

    /// Name of this worker [env: WORKER_ID] [default: made from host name and process id]
    #[arg(long, value_name = "NAME", help_heading = "Process")]
    pub worker_id: Option<String>,
    /// Address of /live, /ready, /health and /metrics; `0` picks a free port and logs it
    /// [env: HTTP_LISTEN] [default: 127.0.0.1:9101]
    #[arg(long, value_name = "ADDR", help_heading = "Process")]
    pub http: Option<String>,
    /// How long NATS, the stream and Discord may be missing at the start [env: STARTUP_TIMEOUT]
    /// [default: 30s]
    #[arg(long, value_name = "DURATION", help_heading = "Process")]
    pub startup_timeout: Option<String>,
    /// How long a stop waits for what is in flight [env: GRACE_PERIOD] [default: 10s]
    #[arg(long, value_name = "DURATION", help_heading = "Process")]
    pub grace_period: Option<String>,
    /// Format of the log on standard error: text or json [env: LOG_FORMAT] [default: text]
    #[arg(long, value_name = "text|json", help_heading = "Process")]
    pub log: Option<String>,
    /// What is logged: a level, or directives such as `info,consumers=debug` [env: RUST_LOG]
    /// [default: info]
    #[arg(long, value_name = "FILTER", help_heading = "Process")]
    pub log_filter: Option<String>,
}
