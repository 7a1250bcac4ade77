//! MCP on raw envelopes: framing, eras, id remapping and who owns which message. No sockets, no runtime.
