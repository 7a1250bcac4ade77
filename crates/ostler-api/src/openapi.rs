//! The OpenAPI document, built from the table of routes.

use utoipa::openapi::path::{OperationBuilder, Parameter, ParameterBuilder, ParameterIn, Paths};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ArrayBuilder, Components, ComponentsBuilder, ObjectBuilder};
use utoipa::openapi::{
    Content, HttpMethod, Info, License, OpenApi, OpenApiBuilder, Ref, RefOr, Required, ResponseBuilder,
    Schema, Type,
};

use crate::routes::{ALL, Answer, ERROR, Param, ParamKind, Place, Route, TypeRef};

/// The OpenAPI document of the management API.
pub fn openapi() -> OpenApi {
    let mut paths = Paths::new();
    let mut components = ComponentsBuilder::new();
    for route in ALL {
        paths.add_path_operation(route.template, vec![http_method(route)], operation(route));
        let answered = match route.answer {
            Answer::One(ty)
            | Answer::Created(ty)
            | Answer::List(ty)
            | Answer::Feed(ty)
            | Answer::Lines(ty)
            | Answer::AcceptedAs(ty)
            | Answer::Events(ty)
            | Answer::NoContentOr(ty) => [Some(ty), None],
            Answer::Followed(ty, event) => [Some(ty), Some(event)],
            Answer::Accepted | Answer::Json | Answer::NoContent | Answer::OpenApi => [None, None],
        };
        components = answered.into_iter().flatten().chain(route.body).fold(components, add_type);
    }
    let components: Components = add_type(components, ERROR).build();
    let mut info = Info::new("Ostler management API", env!("CARGO_PKG_VERSION"));
    info.description = Some(
        "Served over the unix socket in the runtime directory and under the HTTP listener. Every answer that \
         is not a success carries an ApiError."
            .to_owned(),
    );
    info.license = Some(License::new(env!("CARGO_PKG_LICENSE")));
    OpenApiBuilder::new().info(info).paths(paths).components(Some(components)).build()
}

/// The OpenAPI document as JSON text.
///
/// # Panics
///
/// Never in practice: the document has only string keys and finite numbers, and a test serialises it.
pub fn openapi_json() -> String {
    openapi().to_json().expect("the document has only string keys and finite numbers")
}

fn http_method(route: &Route) -> HttpMethod {
    match route.method.as_str() {
        "GET" => HttpMethod::Get,
        "POST" => HttpMethod::Post,
        "PUT" => HttpMethod::Put,
        "DELETE" => HttpMethod::Delete,
        other => unreachable!("the table has no {other} route"),
    }
}

fn add_type(components: ComponentsBuilder, ty: TypeRef) -> ComponentsBuilder {
    let mut inner = Vec::new();
    (ty.dependencies)(&mut inner);
    components.schema(ty.name, (ty.schema)()).schemas_from_iter(inner)
}

fn reference(ty: TypeRef) -> RefOr<Schema> {
    RefOr::Ref(Ref::from_schema_name(ty.name))
}

fn operation(route: &Route) -> OperationBuilder {
    let mut operation =
        OperationBuilder::new().operation_id(Some(route.operation_id)).summary(Some(route.summary));
    for param in route.params {
        operation = operation.parameter(parameter(param));
    }
    if let Some(body) = route.body {
        let content = Content::new(Some(reference(body)));
        let body = RequestBodyBuilder::new().content("application/json", content);
        operation = operation.request_body(Some(body.required(Some(Required::True)).build()));
    }
    if let Answer::NoContentOr(ty) = route.answer {
        let begun = Content::new(Some(reference(ty)));
        let begun =
            ResponseBuilder::new().description("Begun, and not done yet.").content("application/json", begun);
        operation = operation.response("202", begun);
    }
    let (status, success) = success(route.answer);
    operation.response(status, success).response(
        "default",
        ResponseBuilder::new()
            .description("What failed, why, and what to do.")
            .content("application/json", Content::new(Some(reference(ERROR)))),
    )
}

fn parameter(param: &Param) -> Parameter {
    let (place, required) = match param.place {
        Place::Path => (ParameterIn::Path, Required::True),
        Place::Query => (ParameterIn::Query, Required::False),
        Place::Header => (ParameterIn::Header, Required::False),
    };
    let kind = match param.kind {
        ParamKind::Text => Type::String,
        ParamKind::Count => Type::Integer,
        ParamKind::Flag => Type::Boolean,
    };
    let mut schema = ObjectBuilder::new().schema_type(kind);
    if param.kind == ParamKind::Count {
        schema = schema.minimum(Some(0));
    }
    ParameterBuilder::new()
        .name(param.name)
        .parameter_in(place)
        .required(required)
        .description(Some(param.description))
        .schema(Some(schema))
        .build()
}

fn array(ty: TypeRef) -> RefOr<Schema> {
    RefOr::T(Schema::Array(ArrayBuilder::new().items(reference(ty)).build()))
}

fn success(answer: Answer) -> (&'static str, ResponseBuilder) {
    let json = |description: &str, schema: RefOr<Schema>| {
        ResponseBuilder::new()
            .description(description)
            .content("application/json", Content::new(Some(schema)))
    };
    match answer {
        Answer::One(ty) => ("200", json("Done.", reference(ty))),
        Answer::Created(ty) => ("201", json("Made.", reference(ty))),
        Answer::List(ty) => ("200", json("Done.", array(ty))),
        Answer::Feed(ty) => {
            let events = Content::new(Some(reference(ty)));
            (
                "200",
                json("Done; or one event for each, as they come.", array(ty))
                    .content("text/event-stream", events),
            )
        }
        Answer::Followed(ty, event) => {
            let events = Content::new(Some(reference(event)));
            (
                "200",
                json("Done; or events as it goes on.", reference(ty)).content("text/event-stream", events),
            )
        }
        Answer::Lines(ty) => {
            let lines = ResponseBuilder::new()
                .description("One object per line, sent as they come.")
                .content("application/x-ndjson", Content::new(Some(reference(ty))));
            ("200", lines)
        }
        Answer::AcceptedAs(ty) => ("202", json("Accepted, and done later.", reference(ty))),
        Answer::Events(ty) => {
            let events = Content::new(Some(reference(ty)));
            let events = ResponseBuilder::new()
                .description("Events, as they come.")
                .content("text/event-stream", events);
            ("200", events)
        }
        Answer::Json => ("200", json("JSON of any kind.", RefOr::T(Schema::default()))),
        Answer::Accepted => ("202", json("Begun.", RefOr::T(Schema::Object(ObjectBuilder::new().build())))),
        Answer::NoContent | Answer::NoContentOr(_) => ("204", ResponseBuilder::new().description("Done.")),
        Answer::OpenApi => {
            ("200", json("The document.", RefOr::T(Schema::Object(ObjectBuilder::new().build()))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` of the document, as the component's name.
    fn references(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => {
                for (key, inner) in map {
                    match inner.as_str() {
                        Some(target) if key == "$ref" => {
                            found.push(target.rsplit('/').next().unwrap_or_default().to_owned());
                        }
                        _ => references(inner, found),
                    }
                }
            }
            serde_json::Value::Array(items) => items.iter().for_each(|i| references(i, found)),
            _ => {}
        }
    }

    #[test]
    fn the_document_has_every_route_and_no_dangling_reference() {
        let document: serde_json::Value = serde_json::from_str(&openapi_json()).expect("valid JSON");
        for route in ALL {
            let operation = &document["paths"][route.template][route.method.as_str().to_lowercase()];
            assert_eq!(operation["operationId"], route.operation_id);
            assert_eq!(operation["summary"], route.summary);
            let body = &operation["requestBody"]["content"]["application/json"]["schema"]["$ref"];
            let expected = route.body.map(|body| format!("#/components/schemas/{}", body.name));
            assert_eq!(body.as_str(), expected.as_deref(), "{}", route.operation_id);
        }
        let mut names = Vec::new();
        references(&document, &mut names);
        assert!(!names.is_empty());
        for name in names {
            assert!(
                document["components"]["schemas"][&name].is_object(),
                "{name} is referred to, not defined"
            );
        }
    }
}
