//! Client commands; speaks the management API only.
