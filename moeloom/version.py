"""The version of the compiler, written into every artifact."""

VERSION = "0.1.0"
