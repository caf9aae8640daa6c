"""Root of the generated wire contract; `proto/` is a source root."""
