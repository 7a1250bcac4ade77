//! The management API: types, OpenAPI document and a typed client. No logic.
