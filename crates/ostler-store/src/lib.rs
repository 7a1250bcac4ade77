//! SQLite in the state directory: the ledger of running trees and what was learnt about servers.
