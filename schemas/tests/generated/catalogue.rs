//! Every JSON document of the contract: its type, the name of its files, its schema.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use schemas::control::{
    DrainRequest, FleetReply, IdentifyReply, IdentifyRequest, MigrateRequest, ReshardRequest,
    RestartRequest, StateRequest,
};
use schemas::directory::{
    DirectoryInstance, DirectoryStats, GuildEntry, GuildInfo, GuildPage, GuildsRequest, ShardPage,
    ShardPosition, ShardsRequest, UserInfo,
};
use schemas::{
    ClusterState, CommandReply, Dispatch, GatewayCommand, Health, IdentifyState, Leader, Member,
    Plan, ProxyEventKind, ProxyGap, ProxyReshard, ProxyShard, Readiness, ShardClaim, ShardRecord,
    ShareClaim, SingletonLease, SingletonRun, WorkerGroup, WorkerMember,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Stands for the data of any event: Discord's own documentation has the fields.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(rename = "Dispatch")]
pub(crate) struct AnyBody(Value);

/// One type of the contract.
pub(crate) struct Document {
    /// Name of the type.
    pub(crate) name: &'static str,
    subschema: fn(&mut SchemaGenerator) -> Schema,
    root_schema: fn(SchemaGenerator) -> Schema,
    reencode: fn(&Value) -> Result<Value, serde_json::Error>,
    /// The synthetic event whose frame this is.
    proxy_event: Option<ProxyEventKind>,
}

const fn document<T: JsonSchema + Serialize + for<'de> Deserialize<'de>>(
    name: &'static str,
) -> Document {
    Document {
        name,
        subschema: |generator| generator.subschema_for::<T>(),
        root_schema: SchemaGenerator::into_root_schema_for::<T>,
        reencode: |value| serde_json::to_value(T::deserialize(value)?),
        proxy_event: None,
    }
}

const fn frame<T: JsonSchema + Serialize + for<'de> Deserialize<'de>>(
    name: &'static str,
    kind: ProxyEventKind,
) -> Document {
    Document {
        proxy_event: Some(kind),
        ..document::<Dispatch<String, T>>(name)
    }
}

/// All documents, in the order of the contract.
pub(crate) const DOCUMENTS: &[Document] = &[
    document::<Dispatch<String, AnyBody>>("DispatchFrame"),
    frame::<ProxyGap>("ProxyGapFrame", ProxyEventKind::Gap),
    frame::<ProxyShard>("ProxyShardFrame", ProxyEventKind::Shard),
    frame::<ProxyReshard>("ProxyReshardFrame", ProxyEventKind::Reshard),
    document::<GatewayCommand>("GatewayCommand"),
    document::<CommandReply>("CommandReply"),
    document::<IdentifyRequest>("IdentifyRequest"),
    document::<IdentifyReply>("IdentifyReply"),
    document::<DrainRequest>("DrainRequest"),
    document::<MigrateRequest>("MigrateRequest"),
    document::<ReshardRequest>("ReshardRequest"),
    document::<RestartRequest>("RestartRequest"),
    document::<StateRequest>("StateRequest"),
    document::<FleetReply>("FleetReply"),
    document::<Member>("Member"),
    document::<Leader>("Leader"),
    document::<Plan>("Plan"),
    document::<ShardRecord>("ShardRecord"),
    document::<IdentifyState>("IdentifyState"),
    document::<Health>("Health"),
    document::<Readiness>("Readiness"),
    document::<ClusterState>("ClusterState"),
    document::<DirectoryStats>("DirectoryStats"),
    document::<GuildsRequest>("GuildsRequest"),
    document::<GuildPage>("GuildPage"),
    document::<GuildInfo>("GuildInfo"),
    document::<UserInfo>("UserInfo"),
    document::<ShardsRequest>("ShardsRequest"),
    document::<ShardPage>("ShardPage"),
    document::<GuildEntry>("GuildEntry"),
    document::<ShardPosition>("ShardPosition"),
    document::<DirectoryInstance>("DirectoryInstance"),
    document::<WorkerGroup>("WorkerGroup"),
    document::<WorkerMember>("WorkerMember"),
    document::<ShardClaim>("ShardClaim"),
    document::<ShareClaim>("ShareClaim"),
    document::<SingletonLease>("SingletonLease"),
    document::<SingletonRun>("SingletonRun"),
];

impl Document {
    /// The document of this name.
    pub(crate) fn named(name: &str) -> &'static Self {
        let found = DOCUMENTS.iter().find(|document| document.name == name);
        found.unwrap_or_else(|| panic!("{name} is no document"))
    }

    /// `proxy_gap_frame.schema.json`
    pub(crate) fn schema_name(&self) -> String {
        format!("{}.schema.json", self.file_stem())
    }

    /// `proxy_gap_frame.json`
    pub(crate) fn fixture_name(&self) -> String {
        format!("{}.json", self.file_stem())
    }

    fn file_stem(&self) -> String {
        let mut stem = String::new();
        for letter in self.name.chars() {
            if letter.is_ascii_uppercase() && !stem.is_empty() {
                stem.push('_');
            }
            stem.push(letter.to_ascii_lowercase());
        }
        stem
    }

    /// True when the document carries data that is not ours and goes through untouched.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.name, "DispatchFrame" | "GatewayCommand")
    }

    /// Decodes a value and encodes it again.
    pub(crate) fn reencode(&self, value: &Value) -> Result<Value, serde_json::Error> {
        (self.reencode)(value)
    }

    /// The schema that stands alone, as readers need it: what every version wrote is valid.
    pub(crate) fn schema(&self) -> Value {
        let generator = SchemaSettings::draft2020_12().into_generator();
        let mut schema = (self.root_schema)(generator).to_value();
        assert_eq!(schema["title"], self.name, "the type has another name");
        self.fix_constants(&mut schema);
        schema
    }

    /// Adds the type's schema to the generator's definitions.
    pub(crate) fn define(&self, generator: &mut SchemaGenerator) {
        (self.subschema)(generator);
    }

    /// Writes the values a frame always has into its schema.
    pub(crate) fn fix_constants(&self, schema: &mut Value) {
        if self.name.ends_with("Frame") {
            schema["properties"]["op"]["const"] = json!(0);
        }
        if let Some(kind) = self.proxy_event {
            schema["properties"]["t"]["const"] = json!(kind.name());
            schema["properties"]["s"]["type"] = json!("null");
            for number_only in ["format", "minimum"] {
                schema["properties"]["s"]
                    .as_object_mut()
                    .unwrap()
                    .remove(number_only);
            }
        }
    }
}
